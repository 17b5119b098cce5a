"""Where the time of one decision goes."""

from __future__ import annotations

import time

PHASES = ("preprocess", "vision", "prefill", "think", "act")
TIMINGS = (*PHASES, "total")


class Stopwatch:
    """Seconds per phase of one decision."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps = dict.fromkeys(PHASES, 0.0)

    def lap(self, phase: str) -> None:
        """Books the time since the last lap to a phase."""
        now = time.perf_counter()
        self._laps[phase] = now - self._last
        self._last = now

    def elapsed(self) -> float:
        """Seconds since the decision began."""
        return time.perf_counter() - self._start

    def finish(self) -> dict[str, float]:
        """All phases and their total."""
        return {**self._laps, "total": self._last - self._start}
