"""Motion time and the delay of decisions."""

from __future__ import annotations

import pytest
from test_control_chunk_executor import make_executor, numbered
from test_control_open_loop_executor import tick

from dtvla.control.motion_time import DelayEstimate, MotionClock


def test_warm_up_decisions_and_repetitions_do_not_count_as_delay() -> None:
    executor = make_executor(delay=DelayEstimate(warm_up=2, window=3))
    assert executor.delay.mean_s is None
    for decision, delay_ms in enumerate([9000, 5000, 100, 200, 300, 400], 1):
        chunk = numbered(decision, decision)
        for _ in range(3):
            executor.offer(chunk, chunk.stamp_ns + delay_ms * 1_000_000)
    assert executor.delay.mean_s == pytest.approx(0.3)
    assert executor.delay.worst_s == pytest.approx(0.4)
    executor.forget_policy()
    executor.offer(numbered(9, 1), tick(200))
    assert executor.delay.worst_s is None


def test_motion_time_stands_still_while_the_arm_does() -> None:
    clock = MotionClock()
    assert clock.at(123) == 0
    for number, moving in enumerate([True, True, False, False, True]):
        clock.tick(number * 100)
        clock.spend(100 if moving else 0)
    clock.tick(500)
    assert [clock.at(stamp) for stamp in (-50, 0, 50, 200, 350, 400, 450, 500, 900)] == [
        0, 0, 50, 200, 200, 200, 250, 300, 300,
    ]  # fmt: skip


def test_a_picture_from_before_the_memory_of_the_clock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtvla.control.motion_time.KEPT_TICKS", 10)
    executor = make_executor(max_age_s=60.0)
    for number in range(40):
        executor.step(tick(number))
    assert "remembers" in (executor.offer(numbered(1), tick(40)) or "")
    assert executor.offer(numbered(38), tick(40)) is None
