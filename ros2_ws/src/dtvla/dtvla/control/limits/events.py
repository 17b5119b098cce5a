"""What is reported when a limit was touched, and the choice between clamping and refusing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class OnLimit(Enum):
    """What happens to a request beyond a limit of size (step, speed, workspace, joint, gripper).

    Acceleration and jerk are always limited, never refused: every step of a policy asks for an infinite
    acceleration at its edge.
    """

    CLAMP = "clamp"
    REFUSE = "refuse"


@dataclass(frozen=True)
class LimitEvent:
    """One limit that a request touched, for diagnostics.

    Attributes:
        limit: its name in words, for example "linear velocity".
        asked: figure of the request.
        allowed: figure that was let through at most.
        unit: of both figures.
    """

    limit: str
    asked: float
    allowed: float
    unit: str

    def __str__(self) -> str:
        return f"{self.limit}: {self.asked:.4g} {self.unit} asked, {self.allowed:.4g} {self.unit} allowed"


def too_large(limit: str, asked: float, allowed: float, unit: str) -> tuple[LimitEvent, ...]:
    """One event when `asked` lies above `allowed` (beyond rounding), none otherwise."""
    return (LimitEvent(limit, asked, allowed, unit),) if asked > allowed * (1.0 + 1e-9) else ()
