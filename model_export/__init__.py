"""From a checkpoint to a policy bundle: ONNX graphs, the hybrid-mask node, parity checks."""

from model_export.bundle import export_bundle
from model_export.sample import random_bundle

__all__ = ["export_bundle", "random_bundle"]
