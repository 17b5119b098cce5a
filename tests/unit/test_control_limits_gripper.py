"""Limits of the gripper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.control.limits.events import OnLimit
from dtvla.control.limits.gripper import GripperLimits, GripperRequest, limit_gripper

LAST = GripperRequest(0.03, 0.05, 10.0)


@pytest.mark.parametrize(
    ("asked", "given_", "refused", "limits"),
    [
        (GripperRequest(0.04), GripperRequest(0.04), False, []),
        (GripperRequest(0.1), GripperRequest(0.08), True, ["gripper opening"]),
        (GripperRequest(-0.01), GripperRequest(0.0), True, ["gripper opening"]),
        (GripperRequest(0.04, 0.5), GripperRequest(0.04, 0.2), True, ["gripper speed"]),
        (GripperRequest(0.04, 0.1, 200.0), GripperRequest(0.04, 0.1, 70.0), True, ["gripper force"]),
        (GripperRequest(9.0, 9.0, 900.0), GripperRequest(0.08, 0.2, 70.0), True, ["gripper opening"]),
        (GripperRequest(math.nan), LAST, True, ["gripper opening"]),
        (GripperRequest(0.04, math.inf), LAST, True, ["gripper speed"]),
    ],
)
def test_the_gripper_has_a_table(
    asked: GripperRequest, given_: GripperRequest, refused: bool, limits: list[str]
) -> None:
    clamped, events = limit_gripper(asked, LAST, GripperLimits())
    assert clamped == given_
    assert [event.limit for event in events][: len(limits)] == limits
    kept, _ = limit_gripper(asked, LAST, GripperLimits(), OnLimit.REFUSE)
    assert kept == (LAST if refused else asked)


@given(st.floats(), st.floats(), st.floats())
def test_the_gripper_is_never_told_anything_beyond_its_limits(
    opening_m: float, speed_m_s: float, force_n: float
) -> None:
    given_, _ = limit_gripper(GripperRequest(opening_m, speed_m_s, force_n), LAST, GripperLimits())
    assert 0.0 <= given_.opening_m <= 0.08
    assert 0.0 <= given_.speed_m_s <= 0.2
    assert 0.0 <= given_.force_n <= 70.0
