"""Where and how things are timed: CUDA events on a GPU, the wall clock on the CPU (for tests of the flow)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Effort:
    """How long every measurement takes."""

    repeats: int = 30
    warm_up: int = 5

    @classmethod
    def quick(cls) -> Effort:
        return cls(repeats=7, warm_up=2)


class Unavailable(RuntimeError):
    """Something that this machine cannot do; the message is the sentence for the report."""


class TimedDevice:
    """A torch device with a clock."""

    def __init__(self, name: str, effort: Effort) -> None:
        self.torch = torch.device(name)
        self.effort = effort

    @property
    def is_cuda(self) -> bool:
        return self.torch.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.torch) if self.is_cuda else "CPU"

    @property
    def capability(self) -> int:
        """Compute capability times ten; 0 without a GPU."""
        if not self.is_cuda:
            return 0
        major, minor = torch.cuda.get_device_capability(self.torch)
        return 10 * major + minor

    @property
    def cache_bytes(self) -> int:
        """Size of the last-level cache that measurements must not live in."""
        return int(torch.cuda.get_device_properties(self.torch).L2_cache_size) if self.is_cuda else 0

    def facts(self) -> dict[str, object]:
        """What identifies the machine in a report."""
        facts: dict[str, object] = {"name": self.name, "torch": torch.__version__}
        if self.is_cuda:
            p = torch.cuda.get_device_properties(self.torch)
            facts |= {
                "capability": f"{p.major}.{p.minor}",
                "multiprocessors": p.multi_processor_count,
                "memory_gb": round(p.total_memory / 1e9, 1),
                "cuda": torch.version.cuda,
            }
        return facts

    def synchronize(self) -> None:
        """Waits for everything that was started."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Median time of one call, in milliseconds, after warm-up."""
        for _ in range(self.effort.warm_up):
            work()
        self.synchronize()
        once = self._cuda_once if self.is_cuda else self._cpu_once
        return statistics.median(once(work) for _ in range(self.effort.repeats))

    def _cuda_once(self, work: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    @staticmethod
    def _cpu_once(work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin)

    def graph(self, work: Callable[[], object]) -> Callable[[], object]:
        """The work as a CUDA graph: every later call replays it on the same tensors.

        Raises:
            Unavailable: no GPU, or the work cannot be captured.
        """
        if not self.is_cuda:
            raise Unavailable("CUDA graphs need a GPU")
        side = torch.cuda.Stream(self.torch)
        side.wait_stream(torch.cuda.current_stream(self.torch))
        with torch.cuda.stream(side):  # what is compiled or allocated once must be so before the capture
            for _ in range(3):
                work()
        torch.cuda.current_stream(self.torch).wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(captured):
                work()
        except RuntimeError as error:
            self.synchronize()
            raise Unavailable(f"the CUDA graph could not be captured: {first_line(error)}") from None
        return captured.replay


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
