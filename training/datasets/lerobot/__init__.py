"""LeRobot datasets (v2.0, v2.1, v3.0), read, streamed and written with pyarrow and PyAV, without lerobot."""
