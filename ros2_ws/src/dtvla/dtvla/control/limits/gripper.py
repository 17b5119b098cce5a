"""Limits of the gripper: opening, speed and force."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dtvla.control.limits.events import LimitEvent, OnLimit
from dtvla.errors import InputError


@dataclass(frozen=True)
class GripperLimits:
    """What a gripper may be told. Defaults: the Franka Hand.

    Attributes:
        min_opening_m, max_opening_m: between the fingers (data sheet: 0 to 80 mm).
        max_speed_m_s: of the opening, both fingers together (franka_ros2's URDF: 0.2; its default: 0.1).
        max_force_n: that it may go on pressing with (data sheet: 70 N continuous).
    """

    min_opening_m: float = 0.0
    max_opening_m: float = 0.08
    max_speed_m_s: float = 0.2
    max_force_n: float = 70.0

    def __post_init__(self) -> None:
        figures = (self.min_opening_m, self.max_opening_m, self.max_speed_m_s, self.max_force_n)
        if not all(math.isfinite(figure) and figure >= 0 for figure in figures):
            raise InputError(f"The limits of a gripper must be finite and not negative, not {figures}.")
        if self.min_opening_m > self.max_opening_m:
            raise InputError(
                f"The smallest opening of the gripper, {self.min_opening_m} m, is larger than the largest, "
                f"{self.max_opening_m} m."
            )


@dataclass(frozen=True)
class GripperRequest:
    """What the gripper is to do.

    Attributes:
        opening_m: to reach.
        speed_m_s: on the way, of the opening.
        force_n: with which it may press.
    """

    opening_m: float
    speed_m_s: float = 0.1
    force_n: float = 20.0


def limit_gripper(
    request: GripperRequest, last: GripperRequest, limits: GripperLimits, on_limit: OnLimit = OnLimit.CLAMP
) -> tuple[GripperRequest, tuple[LimitEvent, ...]]:
    """The request within the limits, and what was touched.

    Args:
        request: what is asked for.
        last: what is let through instead, where the request is refused or not made of finite numbers.
        limits: of the gripper.
        on_limit: clamp each figure, or refuse the whole request.
    """
    bounds = {
        "opening": (request.opening_m, limits.min_opening_m, limits.max_opening_m, "m"),
        "speed": (request.speed_m_s, 0.0, limits.max_speed_m_s, "m/s"),
        "force": (request.force_n, 0.0, limits.max_force_n, "N"),
    }
    given, events, finite = [], [], True
    for name, (asked, low, high, unit) in bounds.items():
        allowed = min(max(asked, low), high) if math.isfinite(asked) else high
        finite = finite and math.isfinite(asked)
        if allowed != asked:
            events.append(LimitEvent(f"gripper {name}", asked, allowed, unit))
        given.append(allowed)
    if not finite or (events and on_limit is OnLimit.REFUSE):
        return last, tuple(events)
    return GripperRequest(*given), tuple(events)
