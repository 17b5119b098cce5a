"""Qualities of service, as the table in the architecture says. One place, so that both ends agree."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy

# A writer whose process was killed or stopped is noticed after so long; by discovery alone it takes 20 s.
LEASE_S = 2.0


def _profile(depth: int, *, reliable: bool, latched: bool = False, lease_s: float = 0.0) -> QoSProfile:
    lease = {"liveliness": LivelinessPolicy.AUTOMATIC, "liveliness_lease_duration": Duration(seconds=lease_s)}
    return QoSProfile(
        **(lease if lease_s else {}),
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


SENSOR = _profile(5, reliable=False)  # images, joints, poses: a new one replaces a lost one
CLOCK = _profile(1, reliable=False)
COMMAND = _profile(1, reliable=True, lease_s=LEASE_S)  # chunks and deltas: only the newest matters
TARGET = _profile(1, reliable=True)  # towards an arm's own controller, whatever it requests
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
