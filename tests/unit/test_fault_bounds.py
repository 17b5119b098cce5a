"""The judge of `make faults` complains about each limit that is exceeded, and only then."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dtvla.control.limits.motion import MotionLimiter, MotionLimits, Pose, Twist
from dtvla.control.limits.velocity_profile import Box, RateLimits
from tests.faults.invariants import PANDA, Judge, turn_between

CENTRE = np.array([0.5, 0.0, 0.4])
UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


def about_z(angle: float) -> np.ndarray:
    return np.array([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])


def complaints(
    places: list[float], turns: list[float] | None = None, *, judge: Judge | None = None, tick_s: float = 0.01
) -> set[str]:
    """What the judge says about targets at these distances along x, at these angles about z."""
    judge = judge or Judge()
    found = []
    for index, place in enumerate(places):
        turn = turns[index] if turns is not None else 0.0
        position = np.add(CENTRE, [place, 0.0, 0.0])
        found += judge.pose(100.0 + index * tick_s, PANDA.frame, position, about_z(turn))
    found += judge.finish()
    return {item.what.split(" over")[0].split(" (")[0] for item in found}


def ramp(speed: float, acceleration: float, ticks: int, tick_s: float = 0.01) -> list[float]:
    """A motion from rest that keeps to an acceleration."""
    places, place, velocity = [], 0.0, 0.0
    for _ in range(ticks):
        places.append(place)
        velocity = min(speed, velocity + acceleration * tick_s)
        place += velocity * tick_s
    return places


def test_a_motion_within_all_limits_is_not_complained_about() -> None:
    assert complaints(ramp(0.25, 6.0, 60)) == set()
    assert complaints([0.0] * 60, ramp(0.6, 12.0, 60)) == set()


def test_a_velocity_above_the_limit_is_seen() -> None:
    assert complaints(ramp(0.30, 6.0, 60)) == {"linear velocity"}
    assert complaints([0.0] * 60, ramp(0.7, 12.0, 60)) == {"angular velocity"}


def test_a_sudden_start_and_a_sudden_stop_are_seen() -> None:
    moving = [0.0025 * k for k in range(20)]
    assert complaints([0.0] * 5 + moving) >= {"linear acceleration"}
    assert complaints(ramp(0.25, 6.0, 30) + [ramp(0.25, 6.0, 30)[-1]] * 5) >= {"linear acceleration"}
    turning = [0.006 * k for k in range(20)]
    assert complaints([0.0] * 25, [0.0] * 5 + turning) >= {"angular acceleration"}


def test_a_jerk_above_the_limit_is_seen_where_samples_can_show_it() -> None:
    fast = replace(PANDA, tick_s=0.001)
    speeds = np.cumsum([6.0e-3 * (1 if (k // 1) % 2 == 0 else -1) for k in range(60)])
    places = list(np.cumsum(speeds) * 1e-3)
    assert complaints(places, judge=Judge(fast), tick_s=0.001) == {"linear jerk"}
    assert complaints(ramp(0.2, 1.0, 60, 0.001), judge=Judge(fast), tick_s=0.001) == set()


def test_leaving_the_workspace_is_seen_and_coming_back_is_not() -> None:
    assert complaints([0.2999, 0.3001]) >= {"workspace, x"}
    judge = Judge()
    judge.pose(1.0, PANDA.frame, np.array([0.85, 0.0, 0.4]), UPRIGHT)  # begins outside
    assert judge.pose(1.01, PANDA.frame, np.array([0.8499, 0.0, 0.4]), UPRIGHT) == []
    assert judge.pose(1.02, PANDA.frame, np.array([0.85, 0.0, 0.4]), UPRIGHT) != []


@pytest.mark.parametrize(
    ("opening", "speed", "force"),
    [(0.09, 0.1, 20.0), (-0.01, 0.1, 20.0), (math.nan, 0.1, 20.0), (0.04, 0.3, 20.0), (0.04, 0.1, 80.0)],
)
def test_a_gripper_beyond_its_range_is_seen(opening: float, speed: float, force: float) -> None:
    assert Judge().gripper(0.0, opening, speed, force)
    assert not Judge().gripper(0.0, 0.04, 0.1, 20.0)


def test_poses_that_are_no_poses_are_seen() -> None:
    judge = Judge()
    assert judge.pose(1.0, PANDA.frame, np.array([math.nan, 0.0, 0.0]), UPRIGHT)
    assert judge.pose(1.0, PANDA.frame, CENTRE, 2 * UPRIGHT)
    assert judge.pose(1.0, "world", CENTRE, UPRIGHT)


def test_a_delta_beyond_the_benchmarks_scale_is_seen() -> None:
    judge, still = Judge(), np.zeros(3)
    assert not judge.delta(0.0, np.array([0.05, 0.0, 0.0]), np.array([0.0, 0.5, 0.0]), 0.04)
    assert judge.delta(0.0, np.array([0.1, 0.0, 0.0]), still, 0.04)
    assert judge.delta(0.0, still, np.array([0.0, 1.0, 0.0]), 0.04)
    assert judge.delta(0.0, np.array([math.nan, 0.0, 0.0]), still, 0.04)


def test_after_a_pause_a_motion_must_begin_at_rest() -> None:
    judge = Judge()
    places = ramp(0.25, 6.0, 40)
    for index, place in enumerate(places):
        assert not judge.pose(index * 0.01, PANDA.frame, np.add(CENTRE, [place, 0, 0]), UPRIGHT)
    later = np.add(CENTRE, [places[-1] + 0.0025, 0, 0])
    found = judge.pose(1.4, PANDA.frame, later, UPRIGHT) + judge.finish()
    assert any("acceleration" in str(item) for item in found)


def test_what_the_limiter_lets_through_is_never_complained_about_however_late_its_ticks_come() -> None:
    """The two know nothing of each other; times of writing are the true ones plus a random delay."""
    rng = np.random.default_rng(7)
    limits = MotionLimits(
        RateLimits(0.25, 6.5, 3250.0),
        RateLimits(0.6, 12.5, 6250.0),
        Box(np.array(PANDA.lower), np.array(PANDA.upper)),
    )
    for _ in range(3):
        limiter, judge = MotionLimiter(limits, Pose(CENTRE, np.eye(3))), Judge()
        tick_s, written_s, before_s = 0.0, 0.0, 0.0
        request = Twist(np.zeros(3), np.zeros(3))
        for tick in range(300):
            # As rcl's timers: a beat that was missed is skipped, one that is over comes at once.
            tick_s = max(written_s, 0.01 * (math.floor(before_s / 0.01 + 1e-9) + 1))
            if rng.random() < 0.1:
                tick_s += rng.exponential(0.01)  # the timer came late
            if rng.random() < 0.1:
                request = Twist(rng.normal(0, 0.3, 3), rng.normal(0, 0.8, 3))
            if rng.random() < 0.05:
                request = Twist(np.zeros(3), np.zeros(3))
            motion, _ = limiter.limit(request, max(tick_s - before_s, 1e-6))
            before_s = tick_s
            written_s = tick_s + 0.0004 + (rng.exponential(0.01) if rng.random() < 0.05 else 0.0)
            w = math.sqrt(max(0.0, 1 + np.trace(motion.pose.rotation))) / 2
            r = motion.pose.rotation
            quaternion = np.array(
                [w, (r[2, 1] - r[1, 2]) / 4 / w, (r[0, 2] - r[2, 0]) / 4 / w, (r[1, 0] - r[0, 1]) / 4 / w]
            )
            quaternion /= np.linalg.norm(quaternion)
            found = judge.pose(50 + written_s, PANDA.frame, motion.pose.position_m, quaternion)
            assert not found, (tick, [str(item) for item in found])


def test_the_rotation_between_two_quaternions_is_in_the_base_frame() -> None:
    first, last = about_z(0.3), about_z(0.35)
    assert turn_between(first, last) == pytest.approx([0.0, 0.0, 0.05])
    assert turn_between(first, -last) == pytest.approx([0.0, 0.0, 0.05])


def test_commands_that_were_not_heard_are_no_pause() -> None:
    """Bug: a burst of lost messages was taken for a rest, and the motion that went on for a jump."""

    def across(jump_m: float) -> list[str]:
        judge, places = Judge(), ramp(0.25, 6.0, 60)
        found = []
        for index, place in enumerate(places[:20] + places[40:]):
            behind = place + (jump_m if index >= 20 else 0.0)
            time_s = 100.0 + 0.01 * (index if index < 20 else index + 20)
            position = np.add(CENTRE, [behind, 0.0, 0.0])
            found += judge.pose(time_s, PANDA.frame, position, UPRIGHT, lost=index == 20)
        return [str(item) for item in found + judge.finish()]

    assert across(0.0) == []
    assert any("linear velocity over 1" in words for words in across(0.05))
