"""How often something may come. No ROS."""

from __future__ import annotations

from dtvla.nodes.common.parameters import Refusal


class RateLimit:
    """Lets `per_second` events through in any second, a short burst of as many included (a token bucket).

    Args:
        what: comes, in words and in the plural, for the sentence.
        per_second: how many may come.
        parameter: that sets it, for the sentence.
    """

    def __init__(self, what: str, per_second: float, parameter: str) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second)
        self._left = self._burst
        self._last_s: float | None = None
        self._sentence = (
            f"More than {per_second:g} {what} per second came (parameter {parameter}). "
            "Find out who sends them, and send one at a time."
        )

    def count(self, now_s: float) -> None:
        """Counts one event at a monotonic time.

        Raises:
            Refusal: it came too soon; it does not count.
        """
        if self._last_s is not None:
            self._left = min(self._burst, self._left + (now_s - self._last_s) * self._per_second)
        self._last_s = now_s
        if self._left < 1.0:
            raise Refusal(self._sentence)
        self._left -= 1.0
