"""What this machine reaches at best: bytes per second of a large copy, FLOP/s of a large matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model_export.gpu_check.device import TimedDevice

_COPY_BYTES, _SIDE = 2 << 30, 8192
_CPU_COPY_BYTES, _CPU_SIDE = 1 << 22, 128


@dataclass(frozen=True)
class Ceilings:
    """Measured in the same run as what is compared with them."""

    bytes_per_s: float  # read plus written
    flops_per_s: float  # bfloat16 on a GPU

    def floor_ms(self, moved: float, flops: float) -> float:
        """The time that bytes and FLOPs would take at the ceilings, in milliseconds."""
        return 1e3 * max(moved / self.bytes_per_s, flops / self.flops_per_s)


def measure(device: TimedDevice) -> Ceilings:
    """Both ceilings."""
    count = _COPY_BYTES if device.is_cuda else _CPU_COPY_BYTES
    copy_ms = _copy_ms(device, count)
    side = _SIDE if device.is_cuda else _CPU_SIDE
    dtype = torch.bfloat16 if device.is_cuda else torch.float32
    # Random numbers: zeros draw less power and give a ceiling nothing real reaches.
    a, b = (torch.randn(side, side, dtype=dtype, device=device.torch) for _ in range(2))
    matmul_ms = device.milliseconds(lambda: a @ b)
    return Ceilings(2 * count / (copy_ms * 1e-3), 2 * side**3 / (matmul_ms * 1e-3))


def _copy_ms(device: TimedDevice, count: int) -> float:
    source = torch.ones(count, dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    return device.milliseconds(lambda: target.copy_(source))
