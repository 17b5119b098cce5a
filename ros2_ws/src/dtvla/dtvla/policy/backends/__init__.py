"""What runs the two graphs of a bundle: ONNX Runtime or TensorRT, behind one protocol."""
