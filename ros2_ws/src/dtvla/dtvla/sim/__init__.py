"""Simulated worlds behind one interface: the embedded suite and LIBERO's own suites (no ROS, no torch)."""
