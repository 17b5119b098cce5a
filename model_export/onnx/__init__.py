"""ONNX graphs of a policy, with the hybrid mask as one node per layer."""
