"""Training data: recorded episodes and LeRobot datasets, as batches for a model."""
