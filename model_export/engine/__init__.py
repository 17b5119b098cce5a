"""TensorRT engines: shapes, building, and their place in a bundle."""
