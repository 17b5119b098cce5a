"""Deals episodes to workers, one at a time, so that a worker that dies takes one episode with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

Pair = tuple[int, int]  # (task, seed)
MOST_DEATHS = 3  # workers that die one after the other while no episode ends


class WorkQueue:
    """Who runs which episode. A worker stays with its task as long as it can: building a scene takes seconds.

    Args:
        pairs: the (task, seed) pairs to run.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._waiting: dict[int, deque[Pair]] = {}
        for pair in pairs:
            self._waiting.setdefault(pair[0], deque()).append(pair)
        self._running: dict[int, Pair] = {}
        self._last_task: dict[int, int] = {}
        self._deaths = 0

    def __len__(self) -> int:
        """Episodes that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def hopeless(self) -> bool:
        """So many workers died in a row that the next would die as well."""
        return self._deaths >= MOST_DEATHS

    def deal(self, worker: int) -> Pair | None:
        """The next episode of a worker; None when none waits."""
        if not self._waiting:
            self._running.pop(worker, None)
            return None
        task = self._last_task.get(worker)
        if task not in self._waiting:
            others = {pair[0] for who, pair in self._running.items() if who != worker}
            task = max(self._waiting, key=lambda each: (each not in others, len(self._waiting[each]), -each))
        pair = self._waiting[task].popleft()
        if not self._waiting[task]:
            del self._waiting[task]
        self._running[worker] = pair
        self._last_task[worker] = task
        return pair

    def ended(self, worker: int) -> None:
        """A worker has handed in its episode."""
        self._running.pop(worker, None)
        self._deaths = 0

    def died(self, worker: int) -> Pair | None:
        """A worker is gone; returns the episode that it takes with it."""
        self._deaths += 1
        self._last_task.pop(worker, None)
        return self._running.pop(worker, None)

    def give_up(self) -> list[Pair]:
        """Takes all episodes that wait."""
        left = sorted(pair for queue in self._waiting.values() for pair in queue)
        self._waiting.clear()
        return left
