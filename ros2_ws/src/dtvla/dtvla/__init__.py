"""Deployment runtime for DeepThinkVLA policies: see, think aloud, move the arm."""

__version__ = "0.1.0"
