"""Bringing lifecycle nodes alive in order, and watching their heartbeats."""
