"""Several chunks about one moment, the seam between two, and the way to the limiter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_control_action_chunk import PERIOD_NS, START_NS
from test_control_chunk_executor import LATE, STOPPING, make_executor, moved, steady
from test_control_open_loop_executor import events, tick

from dtvla.control.action_chunk import NS_PER_S
from dtvla.control.chunk_executor import ExecutionMode
from dtvla.control.limits.motion import MotionLimiter, MotionLimits, Pose, Twist
from dtvla.control.limits.velocity_profile import RateLimits
from dtvla.control.open_loop_executor import ControllerState
from dtvla.control.rotations import exp_rotation, log_rotation
from dtvla.control.temporal_ensembling import Blending, Handover, Path, Transition, ensemble_weights


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.0, [1 / 3, 1 / 3, 1 / 3]),
        (math.log(2.0), [4 / 7, 2 / 7, 1 / 7]),
        (-math.log(2.0), [1 / 7, 2 / 7, 4 / 7]),  # ACT: the oldest counts most
        (1e6, [1.0, 0.0, 0.0]),
        (-1e6, [0.0, 0.0, 1.0]),
    ],
)
def test_ensemble_weights_have_a_table(rate: float, expected: list[float]) -> None:
    np.testing.assert_allclose(ensemble_weights(3, rate), expected, atol=1e-12)


def test_overlapping_chunks_are_averaged_and_the_gripper_switches() -> None:
    executor = make_executor(ExecutionMode.ENSEMBLED, blend=Blending(ensemble_rate=math.log(3.0)))
    first, second = steady(0, 1, [0.01, 0, 0, 0.2, 0, 0]), steady(2, 2, [0.03, 0, 0, 0, 0.2, 0])
    first.gripper_openings[:], second.gripper_openings[:] = 0.08, 0.0
    first.raw_actions[:] = 1.0
    executor.offer(first, tick(0))
    alone = executor.step(tick(0))
    assert alone is not None
    assert alone.raw_action is not None
    executor.step(tick(1))
    executor.offer(second, tick(2))
    command = executor.step(tick(2))
    assert command is not None
    np.testing.assert_allclose(moved(command), [0.025, 0, 0, 0.05, 0.15, 0])
    assert command.gripper_opening_m == 0.0
    assert command.raw_action is None  # nobody said exactly this


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_the_mean_of_rotation_vectors_is_the_geodesic_mean_up_to_third_order(
    seed: int, weight: float
) -> None:
    rng = np.random.default_rng(seed)
    one, other = (0.5 * each / np.linalg.norm(each) for each in rng.normal(size=(2, 3)))  # full scale
    geodesic = exp_rotation(weight * log_rotation(exp_rotation(other) @ exp_rotation(one).T)) @ exp_rotation(
        one
    )
    mean = exp_rotation((1 - weight) * one + weight * other)
    assert np.linalg.norm(log_rotation(geodesic @ mean.T)) < 0.02


def test_another_task_has_no_share_in_the_ensemble() -> None:
    executor = make_executor(ExecutionMode.ENSEMBLED)
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0]), tick(0))
    executor.step(tick(0))
    executor.drop_plans()
    assert executor.step(tick(1)).hold  # type: ignore[union-attr]
    executor.offer(steady(1, 2, [-0.01, 0, 0, 0, 0, 0]), tick(2))
    np.testing.assert_allclose(moved(executor.step(tick(2)))[0], -0.01)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_path_passes_through_the_sums_of_its_rows(smooth: bool) -> None:
    deltas = np.random.default_rng(1).normal(size=(7, 6))
    path = Path(deltas, smooth=smooth)
    for row in range(8):
        np.testing.assert_allclose(path.state(row)[0], deltas[:row].sum(axis=0), atol=1e-12)


def test_a_spline_is_continuous_to_its_second_derivative_and_keeps_a_steady_motion() -> None:
    path = Path(np.random.default_rng(1).normal(size=(7, 6)), smooth=True)
    for knot in range(1, 7):
        before, after = path.state(knot - 1e-9), path.state(knot + 1e-9)
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    steady_path = Path(np.tile(np.arange(6.0), (5, 1)), smooth=True)
    np.testing.assert_allclose(steady_path.state(2.3)[1], np.arange(6.0), atol=1e-12)


def test_a_handover_starts_with_the_old_motion_and_ends_without_a_trace() -> None:
    handover = Handover(np.arange(6.0), np.arange(6.0)[::-1], rows=3.0)
    position, velocity, acceleration = handover.state(0.0)
    np.testing.assert_allclose(
        [position, velocity, acceleration], [np.zeros(6), np.arange(6.0), np.arange(6.0)[::-1]]
    )
    np.testing.assert_allclose(handover.state(3.0), 0.0, atol=1e-12)
    step = 1e-6
    for row in (0.5, 1.7, 2.9):  # and the derivatives are the derivatives
        now, then = handover.state(row), handover.state(row + step)
        np.testing.assert_allclose((then[0] - now[0]) / step, now[1], atol=1e-4)
        np.testing.assert_allclose((then[1] - now[1]) / step, now[2], atol=1e-4)


@pytest.mark.parametrize("mode", LATE)
def test_a_spline_makes_velocity_and_acceleration_continuous_at_the_seam(mode: ExecutionMode) -> None:
    tick_ns = 1_000_000
    sharpest = {}
    for seam in Transition:
        executor = make_executor(mode, blend=Blending(seam=seam), tick_ns=tick_ns)
        executor.offer(steady(0, 1, [0.005, 0, 0, 0, 0, 0.01]), tick(0))
        velocities = []
        for k in range(600):
            now_ns = START_NS + k * tick_ns
            if k == 200:
                executor.offer(steady(3, 2, [-0.005, 0.005, 0, 0, 0.02, 0]), now_ns)
            velocities.append(moved(executor.step(now_ns)) * 20.0)
        speed = np.array(velocities)[60:440]  # away from the start and from the end of the plan
        sharpest[seam] = (
            np.abs(np.diff(speed, axis=0)).max() * 1e3,
            np.abs(np.diff(speed, 2, axis=0)).max() * 1e6,
        )
    assert sharpest[Transition.CUT][0] > 100.0  # m/s²: a jump of the velocity within a millisecond
    # The quintic's own figures for a change by 0.4 rad/s in 0.15 s: 3.94 dv / T and 36 dv / T².
    assert sharpest[Transition.SPLINE][0] < 3.95 * 0.4 / 0.15
    assert sharpest[Transition.SPLINE][1] < 36.0 * 0.4 / 0.15**2  # the acceleration has no jump either


def test_a_spline_loses_nothing_of_the_new_plan() -> None:
    executor = make_executor(blend=Blending(seam=Transition.SPLINE))
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0]), tick(0))
    for number in range(5):
        executor.step(tick(number))
    executor.offer(steady(5, 2, [0.0, 0.01, 0, 0, 0, 0]), tick(5))
    total = sum(moved(executor.step(tick(5 + number))) for number in range(10))
    np.testing.assert_allclose(total, [0, 0.1, 0, 0, 0, 0], atol=1e-12)


def test_from_rest_a_spline_starts_softly() -> None:
    executor = make_executor(blend=Blending(seam=Transition.SPLINE), tick_ns=5_000_000)
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0]), tick(0))
    first = moved(executor.step(START_NS))[0]
    assert 0.0 < first < 0.001


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from(LATE), st.sampled_from(list(Transition)))
def test_executor_and_limiter_together_keep_the_limits_and_come_to_rest(
    seed: int, mode: ExecutionMode, seam: Transition
) -> None:
    rng = np.random.default_rng(seed)
    tick_ns = 10_000_000
    executor = make_executor(mode, blend=Blending(seam=seam), stopping=STOPPING, tick_ns=tick_ns)
    limits = MotionLimits(RateLimits(0.3, 2.0, 100.0), RateLimits(1.0, 5.0, 200.0))
    limiter = MotionLimiter(limits, Pose(np.zeros(3), np.eye(3)))
    positions, now_ns, decision = [np.zeros(3)] * 3, START_NS, 0
    for k in range(260):
        if k < 60 and rng.uniform() < 0.1:
            decision += 1
            stamp = (now_ns - START_NS) / PERIOD_NS - rng.uniform(0, 4)
            chunk = steady(stamp, decision, rng.normal(size=6) * 0.02)
            assert executor.offer(chunk, now_ns) is None
        command = executor.step(now_ns)
        assert command is not None
        wanted = Twist(command.translation * 20.0, command.rotation * 20.0)
        motion, _ = limiter.limit(None if command.hold else wanted, tick_ns / NS_PER_S)
        positions.append(motion.pose.position_m)
        now_ns += tick_ns
    for order, limit in enumerate((0.3, 2.0, 100.0), 1):
        differences = np.linalg.norm(np.diff(np.array(positions), order, axis=0), axis=1) / 0.01**order
        assert differences.max() <= limit * (1 + 1e-6) + 1e-8
    assert motion.at_rest


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Blending(ensemble_rate=math.nan), "ensemble_rate"),
        (lambda: Blending(seam_rows=0.0), "seam_rows"),
        (lambda: make_executor(tick_ns=0), "between two ticks"),
    ],
    ids=["rate", "rows", "tick"],
)
def test_options_that_make_no_sense_are_refused_in_words(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_an_arm_that_slows_down_says_so_even_when_its_policy_is_gone() -> None:
    """It once said that it waits for its first chunk, while it still moved."""
    executor = make_executor(stopping=STOPPING)
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0]), tick(0))
    executor.step(tick(0))
    executor.forget_policy()
    assert moved(executor.step(tick(1)))[0] > 0.0
    assert executor.state is ControllerState.SLOWING_DOWN
    for number in range(2, 20):
        executor.step(tick(number))
    assert executor.state is ControllerState.WAITING


@settings(deadline=None)
@given(events, st.sampled_from(LATE), st.sampled_from(list(Transition)), st.booleans(), st.booleans())
def test_whatever_happens_a_command_is_finite_and_within_the_limits(
    happenings: list[tuple[str, int, int]], mode: ExecutionMode, seam: Transition, lockstep: bool, fast: bool
) -> None:
    executor = make_executor(
        mode,
        blend=Blending(seam=seam),
        lockstep=lockstep,
        stopping=STOPPING,
        tick_ns=PERIOD_NS // 5 if fast else None,
    )
    for kind, when, number in happenings:
        chunk = steady(when / 2, number, 0.1 * (number + 1) * np.ones(6), rows=1 + number)
        if kind == "bad":
            chunk.rotations[0, 0] = math.nan
        if kind in ("chunk", "bad"):
            executor.offer(chunk, tick(when))
        elif kind == "stop":
            executor.stop()
        elif kind == "clear":
            executor.clear_stop()
        elif kind == "gone":
            executor.forget_policy()
        stopped = executor.state is ControllerState.STOPPED
        command = executor.step(tick(when))
        assert command is not None or lockstep
        if command is not None:
            assert np.isfinite([*moved(command), command.gripper_opening_m]).all()
            assert np.linalg.norm(command.translation) <= 1.8 * 0.05 + 1e-12
            assert np.linalg.norm(command.rotation) <= 18.0 * 0.05 + 1e-12
            assert command.hold or not stopped
