"""What the policy node has seen: the newest picture of every camera, paired by their stamps. No ROS.

Not by `message_filters`: its approximate synchroniser hands over every set that fits, out of queues, where a
policy that thinks for seconds wants the newest one when it asks, and it tells nobody that a camera is silent,
frozen, or too far from the others, which has to stand in the diagnostics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import NS_PER_S


@dataclass(frozen=True)
class SynchronisedImages:
    """Pictures of all cameras from one moment; `stamp_ns` is the newest capture time among them."""

    stamp_ns: int
    pictures: Mapping[str, NDArray[np.uint8]]


class ImageSynchroniser:
    """Pairs camera pictures.

    Args:
        cameras: names of the cameras a look needs.
        tolerance_s: largest difference between the stamps of one look.
        frozen_after_s: a camera whose stamps went on for so long while its picture stayed the same in every
            bit is frozen and completes no look; 0 lets pictures stay (a simulated world at rest does).
    """

    def __init__(self, cameras: Iterable[str], tolerance_s: float, frozen_after_s: float = 0.0) -> None:
        self._tolerance_ns = round(tolerance_s * NS_PER_S)
        self._frozen_after_ns = round(frozen_after_s * NS_PER_S)
        self._newest: dict[str, tuple[int, NDArray[np.uint8]]] = {}
        self._seen_s: dict[str, float | None] = dict.fromkeys(cameras)
        self._changed_ns: dict[str, int] = {}  # stamp from which on the picture stayed the same
        self._paired_s: float | None = None

    def see(
        self, camera: str, stamp_ns: int, picture: NDArray[np.uint8], now_s: float
    ) -> SynchronisedImages | None:
        """Takes a picture in; returns a look when it completes one."""
        if self._frozen_after_ns:
            before = self._newest.get(camera)
            if before is None or stamp_ns < before[0] or not np.array_equal(before[1], picture):
                self._changed_ns[camera] = stamp_ns
        self._newest[camera] = (stamp_ns, picture)
        self._seen_s[camera] = now_s
        if len(self._newest) < len(self._seen_s) or self.frozen():
            return None
        stamps = [stamp for stamp, _ in self._newest.values()]
        if max(stamps) - min(stamps) > self._tolerance_ns:
            return None
        self._paired_s = now_s
        return SynchronisedImages(max(stamps), {name: self._newest[name][1] for name in self._seen_s})

    def drop(self, camera: str) -> None:
        """Forgets the camera's picture: its newest one was refused."""
        self._newest.pop(camera, None)

    def frozen(self) -> list[str]:
        """Cameras that go on sending one and the same picture."""
        if not self._frozen_after_ns:
            return []
        return [
            name
            for name, (stamp_ns, _) in self._newest.items()
            if stamp_ns - self._changed_ns[name] >= self._frozen_after_ns
        ]

    def apart_s(self, now_s: float, timeout_s: float, since_s: float) -> float | None:
        """How far the newest stamps lie apart, if all cameras send but completed no look for `timeout_s`."""
        waited_s = now_s - (since_s if self._paired_s is None else self._paired_s)
        if waited_s < timeout_s or len(self._newest) < len(self._seen_s) or self.frozen():
            return None
        stamps = [stamp for stamp, _ in self._newest.values()]
        return (max(stamps) - min(stamps)) / NS_PER_S

    def silent(self, now_s: float, timeout_s: float, since_s: float) -> list[str]:
        """Cameras that sent nothing for `timeout_s` (counted from `since_s` when they never did)."""
        return [
            name
            for name, seen_s in self._seen_s.items()
            if now_s - (since_s if seen_s is None else seen_s) >= timeout_s
        ]
