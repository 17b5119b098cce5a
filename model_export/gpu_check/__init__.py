"""Measures the attention kernels and whole decisions on the GPU of this machine.

`python -m model_export.gpu_check`; needs torch with CUDA and Triton, no TensorRT and no checkpoint.
"""
