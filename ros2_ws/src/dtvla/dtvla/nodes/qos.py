"""Qualities of service, as the table in the architecture says. One place, so that both ends agree."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, *, reliable: bool, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


SENSOR = _profile(5, reliable=False)  # images, joints, poses: a new one replaces a lost one
CLOCK = _profile(1, reliable=False)
COMMAND = _profile(1, reliable=True)  # chunks and deltas: only the newest matters
STREAM = _profile(50, reliable=True)  # the growing thought
LATCHED = _profile(1, reliable=True, latched=True)  # instruction and task state: late joiners get it


def patient(profile: QoSProfile, depth: int = 200) -> QoSProfile:
    """The same profile with a longer queue, for a listener that must not miss a message."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=profile.reliability,
        durability=profile.durability,
    )
