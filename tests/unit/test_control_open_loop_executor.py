"""The controller's behaviour, tick by tick, without ROS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_control_action_chunk import PERIOD_NS, START_NS, make_chunk

from dtvla.control.limits.cartesian import Limits
from dtvla.control.open_loop_executor import ControllerState, OpenLoopExecutor


def make_open_loop_executor(*, lockstep: bool = False) -> OpenLoopExecutor:
    return OpenLoopExecutor(Limits(), lockstep=lockstep, max_age_s=1.0, gripper_opening_m=0.08)


def tick(number: float) -> int:
    return START_NS + round(number * PERIOD_NS)


def test_without_a_chunk_a_real_time_arm_holds_and_a_lockstep_world_waits() -> None:
    held = make_open_loop_executor().tick(tick(0))
    assert held is not None
    assert held.hold
    assert held.decision_id == 0
    assert make_open_loop_executor(lockstep=True).tick(tick(0)) is None


def test_each_tick_executes_its_row_with_the_raw_action_untouched() -> None:
    open_loop, chunk = make_open_loop_executor(), make_chunk()
    chunk.raw_actions[:] = np.random.default_rng(0).uniform(-1, 1, chunk.raw_actions.shape)
    assert open_loop.offer(chunk) is None
    for row in range(5):
        command = open_loop.tick(tick(row))
        assert command is not None
        assert command.row == row
        assert command.raw_action is not None
        assert command.raw_action.tobytes() == chunk.raw_actions[row].tobytes()
    assert open_loop.state is ControllerState.EXECUTING


def test_a_stale_chunk_halts_the_arm_with_the_gripper_as_it_was() -> None:
    open_loop, chunk = make_open_loop_executor(), make_chunk()
    chunk.gripper_openings[:] = 0.02
    open_loop.offer(chunk)
    open_loop.tick(tick(4))
    held = open_loop.tick(tick(5))
    assert held is not None
    assert held.hold
    assert held.gripper_opening_m == 0.02
    assert open_loop.state is ControllerState.HOLDING


def test_a_late_chunk_starts_in_its_middle() -> None:
    open_loop = make_open_loop_executor()
    open_loop.tick(tick(3))
    open_loop.offer(make_chunk())
    command = open_loop.tick(tick(3))
    assert command is not None
    assert command.row == 3


def test_a_clamped_row_gives_up_its_raw_action() -> None:
    open_loop, chunk = make_open_loop_executor(), make_chunk()
    chunk.translations[0] = [0.2, 0.0, 0.0]  # 4 m/s
    open_loop.offer(chunk)
    command = open_loop.tick(tick(0))
    assert command is not None
    assert command.raw_action is None
    np.testing.assert_allclose(command.translation, [1.8 * 0.05, 0, 0])
    assert open_loop.clamped == 1


def test_a_decision_that_goes_backwards_is_refused_until_the_policy_is_gone() -> None:
    open_loop = make_open_loop_executor()
    assert open_loop.offer(make_chunk(decision_id=5)) is None
    assert open_loop.offer(make_chunk(decision_id=5)) is None  # sent again: the world waits
    assert "backwards" in (open_loop.offer(make_chunk(decision_id=4)) or "")
    open_loop.forget_policy()
    assert open_loop.state is ControllerState.WAITING
    assert open_loop.offer(make_chunk(decision_id=1)) is None


def test_a_refused_chunk_leaves_the_last_good_one_in_charge() -> None:
    open_loop, bad = make_open_loop_executor(), make_chunk(decision_id=2)
    open_loop.offer(make_chunk(decision_id=1))
    bad.translations[2, 2] = np.nan
    assert "not a finite number" in (open_loop.offer(bad) or "")
    command = open_loop.tick(tick(0))
    assert command is not None
    assert command.decision_id == 1


def test_age_counts_in_real_time_only() -> None:
    old = make_chunk(tick(-100))
    real, waiting = make_open_loop_executor(), make_open_loop_executor(lockstep=True)
    for open_loop in (real, waiting):
        open_loop.tick(tick(0))
    assert "old" in (real.offer(old) or "")
    assert waiting.offer(old) is None


def test_a_stop_answers_every_tick_with_a_hold_even_in_lockstep() -> None:
    open_loop = make_open_loop_executor(lockstep=True)
    open_loop.offer(make_chunk())
    open_loop.stop()
    held = open_loop.tick(tick(0))
    assert held is not None
    assert held.hold
    assert open_loop.state is ControllerState.STOPPED
    open_loop.clear_stop()
    released = open_loop.tick(tick(1))
    assert released is not None
    assert not released.hold


def test_after_a_real_time_stop_the_old_plan_is_forgotten() -> None:
    open_loop = make_open_loop_executor()
    open_loop.offer(make_chunk())
    open_loop.stop()
    open_loop.clear_stop()
    held = open_loop.tick(tick(1))
    assert held is not None
    assert held.hold


def test_the_measured_gripper_counts_only_before_the_first_chunk() -> None:
    open_loop = make_open_loop_executor()
    open_loop.measure_gripper(0.03)
    assert open_loop.gripper_opening_m == 0.03
    open_loop.measure_gripper(float("nan"))
    open_loop.measure_gripper(5.0)
    assert open_loop.gripper_opening_m == 0.08
    open_loop.offer(make_chunk())
    open_loop.measure_gripper(0.01)
    assert open_loop.gripper_opening_m == 0.08


events = st.lists(
    st.tuples(
        st.sampled_from(["tick", "chunk", "bad", "stop", "clear", "gone"]),
        st.integers(0, 30),
        st.integers(0, 5),
    ),
    max_size=40,
)


@given(events)
def test_whatever_happens_a_real_time_arm_gets_a_finite_command_within_the_limits(
    happenings: list[tuple[str, int, int]],
) -> None:
    open_loop = make_open_loop_executor()
    stopped = False
    for kind, when, number in happenings:
        chunk = make_chunk(tick(when), decision_id=number)
        chunk.translations[:] = 0.1 * (number + 1)
        if kind == "bad":
            chunk = replace(chunk, rotations=np.full((10, 3), np.nan))
        if kind in ("chunk", "bad"):
            open_loop.offer(chunk)
        elif kind == "stop":
            open_loop.stop()
            stopped = True
        elif kind == "clear":
            open_loop.clear_stop()
            stopped = False
        elif kind == "gone":
            open_loop.forget_policy()
        command = open_loop.tick(tick(when))
        assert command is not None
        assert np.isfinite([*command.translation, *command.rotation, command.gripper_opening_m]).all()
        assert np.linalg.norm(command.translation) <= 1.8 * 0.05 + 1e-12
        assert command.hold or not stopped
