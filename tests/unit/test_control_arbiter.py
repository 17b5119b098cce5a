"""The controller's behaviour, tick by tick, without ROS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_control_chunks import PERIOD_NS, START_NS, make_chunk

from dtvla.control.arbiter import Arbiter, State
from dtvla.control.limits import Limits


def make_arbiter(*, lockstep: bool = False) -> Arbiter:
    return Arbiter(Limits(), lockstep=lockstep, max_age_s=1.0, gripper_opening_m=0.08)


def tick(number: float) -> int:
    return START_NS + round(number * PERIOD_NS)


def test_without_a_chunk_a_real_time_arm_holds_and_a_lockstep_world_waits() -> None:
    held = make_arbiter().tick(tick(0))
    assert held is not None
    assert held.hold
    assert held.decision_id == 0
    assert make_arbiter(lockstep=True).tick(tick(0)) is None


def test_each_tick_executes_its_row_with_the_raw_action_untouched() -> None:
    arbiter, chunk = make_arbiter(), make_chunk()
    chunk.raw_actions[:] = np.random.default_rng(0).uniform(-1, 1, chunk.raw_actions.shape)
    assert arbiter.offer(chunk) is None
    for row in range(5):
        command = arbiter.tick(tick(row))
        assert command is not None
        assert command.row == row
        assert command.raw_action is not None
        assert command.raw_action.tobytes() == chunk.raw_actions[row].tobytes()
    assert arbiter.state is State.EXECUTING


def test_a_stale_chunk_halts_the_arm_with_the_gripper_as_it_was() -> None:
    arbiter, chunk = make_arbiter(), make_chunk()
    chunk.gripper_openings[:] = 0.02
    arbiter.offer(chunk)
    arbiter.tick(tick(4))
    held = arbiter.tick(tick(5))
    assert held is not None
    assert held.hold
    assert held.gripper_opening_m == 0.02
    assert arbiter.state is State.HOLDING


def test_a_late_chunk_starts_in_its_middle() -> None:
    arbiter = make_arbiter()
    arbiter.tick(tick(3))
    arbiter.offer(make_chunk())
    command = arbiter.tick(tick(3))
    assert command is not None
    assert command.row == 3


def test_a_clamped_row_gives_up_its_raw_action() -> None:
    arbiter, chunk = make_arbiter(), make_chunk()
    chunk.translations[0] = [0.2, 0.0, 0.0]  # 4 m/s
    arbiter.offer(chunk)
    command = arbiter.tick(tick(0))
    assert command is not None
    assert command.raw_action is None
    np.testing.assert_allclose(command.translation, [1.8 * 0.05, 0, 0])
    assert arbiter.clamped == 1


def test_a_decision_that_goes_backwards_is_refused_until_the_policy_is_gone() -> None:
    arbiter = make_arbiter()
    assert arbiter.offer(make_chunk(decision_id=5)) is None
    assert arbiter.offer(make_chunk(decision_id=5)) is None  # sent again: the world waits
    assert "backwards" in (arbiter.offer(make_chunk(decision_id=4)) or "")
    arbiter.forget_policy()
    assert arbiter.state is State.WAITING
    assert arbiter.offer(make_chunk(decision_id=1)) is None


def test_a_refused_chunk_leaves_the_last_good_one_in_charge() -> None:
    arbiter, bad = make_arbiter(), make_chunk(decision_id=2)
    arbiter.offer(make_chunk(decision_id=1))
    bad.translations[2, 2] = np.nan
    assert "not a finite number" in (arbiter.offer(bad) or "")
    command = arbiter.tick(tick(0))
    assert command is not None
    assert command.decision_id == 1


def test_age_counts_in_real_time_only() -> None:
    old = make_chunk(tick(-100))
    real, waiting = make_arbiter(), make_arbiter(lockstep=True)
    for arbiter in (real, waiting):
        arbiter.tick(tick(0))
    assert "old" in (real.offer(old) or "")
    assert waiting.offer(old) is None


def test_a_stop_answers_every_tick_with_a_hold_even_in_lockstep() -> None:
    arbiter = make_arbiter(lockstep=True)
    arbiter.offer(make_chunk())
    arbiter.stop()
    held = arbiter.tick(tick(0))
    assert held is not None
    assert held.hold
    assert arbiter.state is State.STOPPED
    arbiter.clear_stop()
    released = arbiter.tick(tick(1))
    assert released is not None
    assert not released.hold


def test_after_a_real_time_stop_the_old_plan_is_forgotten() -> None:
    arbiter = make_arbiter()
    arbiter.offer(make_chunk())
    arbiter.stop()
    arbiter.clear_stop()
    held = arbiter.tick(tick(1))
    assert held is not None
    assert held.hold


def test_the_measured_gripper_counts_only_before_the_first_chunk() -> None:
    arbiter = make_arbiter()
    arbiter.measure_gripper(0.03)
    assert arbiter.gripper_opening_m == 0.03
    arbiter.measure_gripper(float("nan"))
    arbiter.measure_gripper(5.0)
    assert arbiter.gripper_opening_m == 0.08
    arbiter.offer(make_chunk())
    arbiter.measure_gripper(0.01)
    assert arbiter.gripper_opening_m == 0.08


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
    arbiter = make_arbiter()
    stopped = False
    for kind, when, number in happenings:
        chunk = make_chunk(tick(when), decision_id=number)
        chunk.translations[:] = 0.1 * (number + 1)
        if kind == "bad":
            chunk = replace(chunk, rotations=np.full((10, 3), np.nan))
        if kind in ("chunk", "bad"):
            arbiter.offer(chunk)
        elif kind == "stop":
            arbiter.stop()
            stopped = True
        elif kind == "clear":
            arbiter.clear_stop()
            stopped = False
        elif kind == "gone":
            arbiter.forget_policy()
        command = arbiter.tick(tick(when))
        assert command is not None
        assert np.isfinite([*command.translation, *command.rotation, command.gripper_opening_m]).all()
        assert np.linalg.norm(command.translation) <= 1.8 * 0.05 + 1e-12
        assert command.hold or not stopped
