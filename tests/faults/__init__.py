"""Breaks the running graph on purpose: `make faults`, `make soak`. Real processes over DDS."""
