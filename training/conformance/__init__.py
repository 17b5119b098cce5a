"""Comparison with golden data of the reference implementation (format: its own README)."""
