"""What leaves the rate limiter keeps every limit, whatever goes in; it rests, and gets where it may."""

from __future__ import annotations

import math
import os
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dtvla.control.limits.jerk import RateLimiter, approach_speed
from dtvla.control.limits.velocity_profile import Box, RateLimits

EXAMPLES = int(os.environ.get("DTVLA_MOTION_EXAMPLES", "60"))  # thousands were tried; seconds are spent here
START = np.array([0.4, 0.0, 0.4])
BOX = Box(np.array([0.2, -0.3, 0.1]), np.array([0.6, 0.3, 0.7]))

limit_sets = st.sampled_from(
    [
        RateLimits(1.7, 13.0, 6500.0),  # Panda
        RateLimits(3.0, 9.0, 4500.0),  # FR3
        RateLimits(0.2, 1.0, 20.0),  # careful: the jerk limit shapes everything
        RateLimits(1.0, 0.5, 1e5),  # weak brakes
        RateLimits(0.05, 50.0, 1e5),
        RateLimits(2.0, 30.0, 10.0),  # never reaches its acceleration
    ]
)
ticks = st.sampled_from([0.001, 0.004, 0.01, 0.05, 0.1])
sizes = st.sampled_from([0.0, 1e-9, 0.01, 0.3, 3.0, 1e3, 1e150, 1e308])


def differences(values: np.ndarray, dt_s: float, order: int) -> float:
    """The longest finite difference of that order, per time: a mean of the derivative, so never above it."""
    return float(np.linalg.norm(np.diff(values, order, axis=0), axis=1).max(initial=0.0)) / dt_s**order


def assert_rates(values: np.ndarray, dt_s: float, limits: RateLimits) -> None:
    figures = (limits.velocity, limits.acceleration, limits.jerk)
    for order, limit in enumerate(figures, 1):
        # positions of about 1 have 1e-16 of rounding, and a third difference divides it by dt³
        rounding = 2**order * 1e-15 * (1.0 + np.abs(values).max()) / dt_s**order
        assert differences(values, dt_s, order) <= limit * (1 + 1e-6) + rounding


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    limit_sets, ticks, st.lists(st.tuples(st.integers(0, 2**32 - 1), sizes, st.integers(1, 12)), max_size=15)
)
def test_no_request_leads_beyond_a_limit_or_out_of_the_box(
    limits: RateLimits, dt_s: float, requests: list[tuple[int, float, int]]
) -> None:
    limiter = RateLimiter(limits, START, BOX)
    positions = [START] * 3
    for seed, size, times in requests:
        direction = np.random.default_rng(seed).uniform(-1.0, 1.0, 3)
        wanted = size * direction
        for _ in range(times):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                limiter.step(wanted, dt_s)
            positions.append(limiter.position)
            assert np.linalg.norm(limiter.velocity) <= limits.velocity * (1 + 1e-9)
            assert np.linalg.norm(limiter.acceleration) <= limits.acceleration * (1 + 1e-6)
    for _ in range(100_000):
        if limiter.at_rest:
            break
        limiter.step(np.zeros(3), dt_s)
        positions.append(limiter.position)
    assert limiter.at_rest
    path = np.array(positions + positions[-1:] * 3)
    assert (path >= BOX.lower - 1e-9).all()
    assert (path <= BOX.upper + 1e-9).all()
    assert_rates(path, dt_s, limits)


@settings(max_examples=EXAMPLES, deadline=None)
@given(limit_sets, st.lists(st.tuples(st.integers(0, 2**32 - 1), ticks), min_size=1, max_size=40))
def test_ticks_of_any_length_keep_velocity_acceleration_and_box(
    limits: RateLimits, steps: list[tuple[int, float]]
) -> None:
    limiter = RateLimiter(limits, START, BOX)
    velocity = limiter.velocity
    for seed, dt_s in steps:
        displacement = limiter.step(np.random.default_rng(seed).normal(size=3), dt_s)
        assert np.linalg.norm(displacement) <= limits.velocity * dt_s * (1 + 1e-9)
        assert np.linalg.norm(limiter.velocity - velocity) <= limits.acceleration * dt_s * (1 + 1e-6) + 1e-12
        assert BOX.holds(limiter.position[None])
        velocity = limiter.velocity


@settings(max_examples=EXAMPLES, deadline=None)
@given(limit_sets, ticks, st.integers(0, 2**32 - 1))
@example(RateLimits(velocity=1.7, acceleration=13.0, jerk=6500.0), 0.05, 1898049)  # once five ticks: a detour
def test_a_hold_comes_to_rest_in_the_time_that_the_limits_need(
    limits: RateLimits, dt_s: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    limiter = RateLimiter(limits, np.zeros(3))
    for _ in range(rng.integers(1, 60)):
        limiter.step(rng.normal(size=3) * limits.velocity, dt_s)
    speed, sharpness = np.linalg.norm(limiter.velocity), np.linalg.norm(limiter.acceleration)
    settling = sharpness / limits.jerk
    speed += sharpness * settling
    needed = settling + max(1.5 * speed / limits.acceleration, math.sqrt(6 * speed / limits.jerk))
    spent = 0.0
    while not limiter.at_rest:
        limiter.step(np.zeros(3), dt_s)
        spent += dt_s
    assert spent <= 2.0 * needed + 2 * dt_s


@settings(max_examples=EXAMPLES, deadline=None)
@given(limit_sets, ticks, st.integers(0, 2**32 - 1))
def test_an_admissible_velocity_is_reached_exactly(limits: RateLimits, dt_s: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    limiter = RateLimiter(limits, np.zeros(3))
    for _ in range(10):
        limiter.step(rng.normal(size=3) * limits.velocity, dt_s)
    direction = rng.normal(size=3)
    wanted = direction / np.linalg.norm(direction) * limits.velocity * rng.uniform(0, 1)
    for _ in range(100_000):
        if np.array_equal(limiter.velocity, wanted):
            break
        limiter.step(wanted, dt_s)
    np.testing.assert_array_equal(limiter.velocity, wanted)
    np.testing.assert_array_equal(limiter.acceleration, 0.0)


def test_towards_a_wall_the_speed_falls_with_the_root_of_the_distance() -> None:
    limiter = RateLimiter(RateLimits(0.5, 2.0, 200.0), START, BOX)
    for _ in range(2000):
        before = float(BOX.upper[0] - limiter.position[0])
        limiter.step(np.array([1.0, 0.0, 0.0]), 0.005)
        assert limiter.velocity[0] <= math.sqrt(2.0 * 2.0 * max(before, 0.0)) + 1e-9
    assert BOX.upper[0] - limiter.position[0] == pytest.approx(0.0, abs=1e-4)
    assert limiter.position[0] <= BOX.upper[0] + 1e-11


def test_along_a_wall_the_arm_slides() -> None:
    limiter = RateLimiter(RateLimits(0.5, 2.0, 200.0), np.array([0.6, 0.0, 0.4]), BOX)
    for _ in range(100):
        limiter.step(np.array([0.3, 0.2, 0.0]), 0.01)
    assert limiter.velocity[1] == 0.2
    assert limiter.position[0] <= 0.6 + 1e-9


def test_from_outside_the_box_the_arm_may_only_come_back() -> None:
    limiter = RateLimiter(RateLimits(0.5, 2.0, 200.0), np.array([0.8, 0.0, 0.4]), BOX)
    for _ in range(50):
        limiter.step(np.array([0.5, 0.0, 0.0]), 0.05)
    assert limiter.position[0] <= 0.8
    for _ in range(200):
        limiter.step(np.array([-0.5, 0.0, 0.0]), 0.05)
        assert limiter.position[0] <= 0.8
    assert limiter.position[0] == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize(
    ("distance", "acceleration", "jerk", "dt_s", "speed"),
    [
        (0.0, 2.0, 1e6, 0.05, 0.0),
        (-0.1, 2.0, 1e6, 0.05, 0.0),
        (0.5, 4.0, 1e6, 0.001, 1.0),  # sqrt(2 · a/4 · d)
        (0.3, 1e6, 3.0, 0.001, (0.5 * 0.09) ** (1 / 3)),  # cbrt(2/3 · j/4 · d²)
        (9.0, 1e6, 1e6, 0.001, 2.0),
        (0.01, 100.0, 1e6, 0.05, 0.05),  # a quarter of it in one tick
    ],
)
def test_the_approach_speed_has_a_table(
    distance: float, acceleration: float, jerk: float, dt_s: float, speed: float
) -> None:
    assert approach_speed(distance, RateLimits(2.0, acceleration, jerk), dt_s) == pytest.approx(speed)


@pytest.mark.parametrize("dt_s", [0.001, 0.004, 0.01])
def test_a_fast_clock_does_not_make_the_arm_slow(dt_s: float) -> None:
    """A too careful bound of the acceleration once refused every change that began in mid-motion, so that an
    arm at 1 kHz crept: 2.2 s for a way that takes 0.42 s at best. And over microseconds a jerk from the
    differences of velocities is mostly rounding: with weak brakes it refused them all, and the arm stood."""
    for limits, best_s in ((RateLimits(1.7, 13.0, 6500.0), 0.42), (RateLimits(1.0, 0.5, 1e5), 2.12)):
        limiter = RateLimiter(limits, np.zeros(3))
        goal, spent_s = np.array([0.2, -0.1, 0.3]), 0.0
        while np.linalg.norm(goal - limiter.position) > 1e-4:
            way = goal - limiter.position
            distance = float(np.linalg.norm(way))
            limiter.step(way * (approach_speed(distance, limits, dt_s) / distance), dt_s)
            spent_s += dt_s
            assert spent_s < 2.0 * best_s
