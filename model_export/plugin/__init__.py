"""The hybrid-mask attention for GPUs: Triton kernels, a torch operator, and the TensorRT plugin.

The ONNX node it stands for is described in `model_export.onnx.hybrid_attention`.
"""
