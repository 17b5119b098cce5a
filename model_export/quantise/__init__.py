"""Bundles in eight bits: calibration and Q/DQ nodes."""
