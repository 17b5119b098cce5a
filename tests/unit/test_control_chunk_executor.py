"""How chunks become motion: which row, what at the seam, and what when the next one is late."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_control_action_chunk import PERIOD_NS, START_NS, make_chunk
from test_control_open_loop_executor import events, tick

from dtvla.control.action_chunk import NS_PER_S, Chunk
from dtvla.control.chunk_executor import ChunkExecutor, ExecutionMode
from dtvla.control.limits.cartesian import Limits
from dtvla.control.limits.velocity_profile import RateLimits
from dtvla.control.open_loop_executor import Command, ControllerState, OpenLoopExecutor
from dtvla.control.stopping import StoppingLimits
from dtvla.control.temporal_ensembling import Blending, Transition

STOPPING = StoppingLimits(RateLimits(1.0, 2.0, 100.0), RateLimits(1.0, 4.0, 200.0))
LATE = (ExecutionMode.RECEDING, ExecutionMode.ENSEMBLED)


def make_executor(mode: ExecutionMode = ExecutionMode.RECEDING, **options: object) -> ChunkExecutor:
    given_ = {"lockstep": False, "max_age_s": 10.0, **options}
    return ChunkExecutor(mode, Limits(), **given_)  # type: ignore[arg-type]


def numbered(stamp: float, decision_id: int = 1, *, rows: int = 10, sign: float = 1.0) -> Chunk:
    """A chunk whose row k moves by k + 1 tenths of a millimetre along x."""
    chunk = make_chunk(tick(stamp), decision_id=decision_id, rows=rows, execute=min(5, rows))
    chunk.translations[:, 0] = sign * 1e-4 * np.arange(1, rows + 1)
    return chunk


def steady(stamp: float, decision_id: int, velocity: object, *, rows: int = 10) -> Chunk:
    """A chunk of one velocity [6], per period."""
    chunk = make_chunk(tick(stamp), decision_id=decision_id, rows=rows, execute=min(5, rows))
    chunk.translations[:], chunk.rotations[:] = np.split(np.array(velocity, np.float64), 2)
    return chunk


def moved(command: Command | None) -> np.ndarray:
    assert command is not None
    return np.concatenate([command.translation, command.rotation])


@given(events, st.booleans())
def test_open_loop_is_the_arbiter_bit_for_bit(happenings: list[tuple[str, int, int]], lockstep: bool) -> None:
    open_loop = OpenLoopExecutor(Limits(), lockstep=lockstep, max_age_s=1.0, gripper_opening_m=0.08)
    executor = make_executor(ExecutionMode.OPEN_LOOP, lockstep=lockstep, max_age_s=1.0)
    for kind, when, number in happenings:
        chunk = make_chunk(tick(when), decision_id=number)
        chunk.translations[:] = 0.03 * (number + 1)
        chunk.gripper_openings[:] = 0.01 * number
        if kind == "bad":
            chunk = replace(chunk, rotations=np.full((10, 3), np.nan))
        if kind in ("chunk", "bad"):
            assert executor.offer(chunk, tick(when + 100)) == open_loop.offer(chunk)
        elif kind == "stop":
            executor.stop(), open_loop.stop()
        elif kind == "clear":
            executor.clear_stop(), open_loop.clear_stop()
        elif kind == "gone":
            executor.forget_policy(), open_loop.forget_policy()
        mine, theirs = executor.step(tick(when)), open_loop.tick(tick(when))
        assert (mine is None) == (theirs is None)
        assert executor.state is open_loop.state
        assert executor.clamped == open_loop.clamped
        if mine is not None and theirs is not None:
            assert moved(mine).tobytes() == moved(theirs).tobytes()
            assert (mine.tick_ns, mine.decision_id, mine.row) == (
                theirs.tick_ns,
                theirs.decision_id,
                theirs.row,
            )
            assert (mine.hold, mine.gripper_opening_m) == (theirs.hold, theirs.gripper_opening_m)
            assert (mine.raw_action is None) == (theirs.raw_action is None)


def test_a_lockstep_world_sees_no_difference_between_receding_and_open_loop() -> None:
    rng = np.random.default_rng(0)
    one, other = make_executor(ExecutionMode.OPEN_LOOP, lockstep=True), make_executor(lockstep=True)
    for number in range(40):
        if one.step(tick(number)) is None:
            assert other.step(tick(number)) is None
            chunk = make_chunk(tick(number), decision_id=number + 1)
            chunk.translations[:] = rng.normal(size=(10, 3)) * 0.01
            chunk.raw_actions[:] = rng.normal(size=(10, 7))
            for executor in (one, other):
                assert executor.offer(chunk, tick(number)) is None
        first, second = one.step(tick(number)), other.step(tick(number))
        assert first is not None
        assert second is not None
        assert first.raw_action is not None
        assert second.raw_action is not None
        assert first.raw_action.tobytes() == second.raw_action.tobytes()
        assert (first.decision_id, first.row) == (second.decision_id, second.row)


@pytest.mark.parametrize("mode", LATE)
def test_an_arm_that_stood_still_starts_at_row_zero_however_long_the_policy_took(mode: ExecutionMode) -> None:
    """By wall time a policy slower than its chunk (here 1.5 s for 0.5 s of rows) never moves the arm."""
    executor, today = make_executor(mode), make_executor(ExecutionMode.OPEN_LOOP)
    for number in range(30):
        assert moved(executor.step(tick(number))).any() == moved(today.step(tick(number))).any() == False  # noqa: E712
    for each in (executor, today):
        assert each.offer(numbered(0), tick(30)) is None
    rows = [executor.step(tick(30 + k)).row for k in range(10)]  # type: ignore[union-attr]
    assert rows == list(range(10))
    assert today.step(tick(30)).hold  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", LATE)
def test_a_chunk_goes_on_where_the_one_before_has_brought_the_arm(mode: ExecutionMode) -> None:
    executor = make_executor(mode, blend=Blending(ensemble_rate=50.0))
    executor.offer(numbered(0), tick(0))
    for number in range(7):  # the second picture is taken at tick 4, its chunk comes before tick 7
        executor.step(tick(number))
    executor.offer(numbered(4, 2, sign=-1.0), tick(7))
    command = executor.step(tick(7))
    assert command is not None
    assert (command.decision_id, command.row) == (2, 3)
    assert command.translation[0] == pytest.approx(-4e-4)


def test_time_that_was_held_is_not_skipped() -> None:
    executor = make_executor()
    executor.offer(numbered(0, rows=3), tick(0))
    for number in range(8):  # three rows, then five holds
        executor.step(tick(number))
    executor.offer(numbered(2, 2), tick(8))  # its picture was taken with one row to go
    command = executor.step(tick(8))
    assert command is not None
    assert (command.decision_id, command.row) == (2, 1)


happenings = st.lists(
    st.tuples(
        st.sampled_from(["chunk", "chunk", "again", "stop", "clear"]), st.integers(0, 12), st.integers(1, 8)
    ),
    max_size=12,
)


@settings(deadline=None)
@given(happenings, st.integers(-20_000_000, 20_000_000), st.booleans())
def test_no_row_is_replayed_and_no_more_is_skipped_than_the_arm_has_done(
    story: list[tuple[str, int, int]], jitter_ns: int, stopping: bool
) -> None:
    executor = make_executor(stopping=STOPPING if stopping else None)
    number, now_ns, decision, last = 0, tick(0), 0, None
    done: list[tuple[int, Command]] = []
    rows: dict[int, list[int]] = {}
    for kind, age, ticks in story:
        stamp_ns = now_ns - age * PERIOD_NS // 2
        if kind == "chunk":
            decision += 1
            last = numbered(0, decision)
            last = replace(last, stamp_ns=stamp_ns)
        if kind in ("chunk", "again") and last is not None:
            assert executor.offer(last, now_ns) is None
        elif kind == "stop":
            executor.stop()
        elif kind == "clear":
            executor.clear_stop()
        for _ in range(ticks):
            command = executor.step(now_ns)
            assert command is not None
            done.append((now_ns, command))
            if not command.hold and executor.state is not ControllerState.SLOWING_DOWN:
                rows.setdefault(command.decision_id, []).append(command.row)
                if len(rows[command.decision_id]) == 1 and last is not None:
                    moved_since = sum(
                        not each.hold and then + PERIOD_NS > last.stamp_ns for then, each in done[:-1]
                    )
                    assert command.row <= moved_since + 1
            number += 1
            now_ns += PERIOD_NS + (jitter_ns if number % 2 else 0)
    for each in rows.values():
        assert all(later > earlier for earlier, later in pairwise(each))


def test_faster_or_slower_ticks_execute_every_row_once() -> None:
    for spacing_ns in (PERIOD_NS * 8 // 10, PERIOD_NS * 12 // 10):
        executor = make_executor()
        executor.offer(numbered(0), START_NS)
        rows = [executor.step(START_NS + k * spacing_ns).row for k in range(10)]  # type: ignore[union-attr]
        assert rows == list(range(10))


def test_a_tick_asked_twice_gets_one_answer_and_costs_one_row() -> None:
    executor = make_executor()
    executor.offer(numbered(0), tick(0))
    first, again = executor.step(tick(0)), executor.step(tick(0))
    assert first is again
    assert executor.step(tick(1)).row == 1  # type: ignore[union-attr]


def test_a_clock_that_jumps_back_starts_all_anew() -> None:
    executor = make_executor()
    executor.offer(numbered(0), tick(0))
    executor.step(tick(0))
    assert executor.step(tick(-100)).hold  # type: ignore[union-attr]
    assert executor.offer(numbered(-100, 2), tick(-100)) is None
    assert executor.step(tick(-99)).row == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", LATE)
def test_when_the_next_chunk_is_late_the_rest_is_executed_and_the_arm_slows_down_within_limits(
    mode: ExecutionMode,
) -> None:
    executor = make_executor(mode, stopping=STOPPING)
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0.02]), tick(0))  # 0.2 m/s, 0.4 rad/s
    velocities, states = [], []
    for number in range(20):
        command = executor.step(tick(number))
        velocities.append(moved(command) / (PERIOD_NS / NS_PER_S))
        states.append(executor.state)
    speeds = np.linalg.norm(np.array(velocities)[:, :3], axis=1)
    np.testing.assert_allclose(speeds[:10], 0.2)  # execute_steps is 5: it goes on to the horizon
    assert 0.0 < speeds[10] < 0.2
    assert (np.diff(speeds[9:]) <= 0).all()
    assert np.abs(np.diff(speeds)).max() / 0.05 <= STOPPING.linear.acceleration
    assert speeds[-1] == 0.0
    assert states[9] is ControllerState.EXECUTING
    assert ControllerState.SLOWING_DOWN in states
    assert states[-1] is ControllerState.HOLDING
    assert executor.late_chunks == 1


def test_without_brakes_a_late_chunk_stops_the_arm_dead() -> None:
    executor = make_executor()
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0]), tick(0))
    commands = [executor.step(tick(number)) for number in range(12)]
    assert [command.hold for command in commands if command] == [False] * 10 + [True] * 2


def test_what_is_covered_while_slowing_down_counts_as_lived_through() -> None:
    executor = make_executor(stopping=StoppingLimits(RateLimits(1, 0.75, 1e6), RateLimits(1, 1e6, 1e6)))
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0]), tick(0))  # 0.2 m/s: 0.4 s to rest, 40 mm, 4 rows
    covered = sum(moved(executor.step(tick(number)))[0] for number in range(30))
    assert covered == pytest.approx(10 * 0.01 + 0.2 * 0.4 / 2)
    executor.offer(steady(9, 2, [0.01, 0, 0, 0, 0, 0]), tick(30))
    assert executor.step(tick(30)).row == 5  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", LATE)
def test_a_policy_that_tells_the_arm_to_stay_is_obeyed_at_once(mode: ExecutionMode) -> None:
    executor = make_executor(mode)
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0]), tick(0))
    for number in range(4):
        executor.step(tick(number))
    executor.offer(steady(2, 2, np.zeros(6), rows=1), tick(4))
    assert executor.step(tick(4)).hold  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", list(ExecutionMode))
@pytest.mark.parametrize("seam", list(Transition))
def test_a_stop_holds_from_the_same_tick_on_and_only_a_new_look_moves_the_arm_again(
    mode: ExecutionMode, seam: Transition
) -> None:
    executor = make_executor(mode, blend=Blending(seam=seam), stopping=STOPPING)
    executor.offer(steady(0, 1, [0.01, 0, 0, 0, 0, 0]), tick(0))
    executor.step(tick(0))
    executor.stop()
    assert executor.step(tick(0)).hold  # type: ignore[union-attr]
    assert executor.step(tick(1)).hold  # type: ignore[union-attr]
    assert executor.state is ControllerState.STOPPED
    executor.clear_stop()
    assert executor.step(tick(2)).hold  # type: ignore[union-attr]
    executor.offer(steady(3, 2, [0.01, 0, 0, 0, 0, 0]), tick(3))
    assert not executor.step(tick(3)).hold  # type: ignore[union-attr]


def test_a_refused_chunk_leaves_the_plan_as_it_was() -> None:
    executor = make_executor()
    executor.offer(numbered(0), tick(0))
    executor.step(tick(0))
    bad = numbered(1, 2)
    bad.translations[3, 1] = math.nan
    assert "not a finite number" in (executor.offer(bad, tick(1)) or "")
    assert "old" in (executor.offer(numbered(-300, 3), tick(1)) or "")
    assert "backwards" in (executor.offer(numbered(1, 0), tick(1)) or "")
    assert executor.step(tick(1)).decision_id == 1  # type: ignore[union-attr]


def test_a_wild_row_is_clamped_in_every_mode() -> None:
    for mode in ExecutionMode:
        executor = make_executor(mode)
        executor.offer(steady(0, 1, [0.2, 0, 0, 0, 0, 0]), tick(0))  # 4 m/s
        assert moved(executor.step(tick(0)))[0] == pytest.approx(1.8 * 0.05)
        assert executor.clamped == 1
