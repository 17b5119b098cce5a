"""The watches of the controller: what each says, and when it is quiet."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dtvla.control.action_chunk import NS_PER_S
from dtvla.control.limits.motion import Pose
from dtvla.control.rotations import exp_rotation
from dtvla.control.watchdogs import ClockWatch, RestWatch, Silence, StampWatch, distance

MS = NS_PER_S // 1000


def pose(x: float = 0.0, turn: float = 0.0) -> Pose:
    return Pose(np.array([x, 0.0, 0.0]), exp_rotation(np.array([0.0, 0.0, turn])))


def test_silence_is_told_before_the_first_word_and_after_the_timeout() -> None:
    watch = Silence("the arm", 0.2, "Start it.")
    assert "yet. Start it." in (watch.sentence(0.0) or "")
    watch.hear(1.0)
    assert watch.sentence(1.19) is None
    assert "more than 0.2 s. Start it." in (watch.sentence(1.25) or "")
    watch.hear(2.0)
    assert watch.sentence(2.1) is None


def test_an_old_stamp_and_one_from_the_future_are_refused() -> None:
    watch = StampWatch("ee_pose", max_age_s=0.5)
    now = 100 * NS_PER_S
    assert "0.6 s old" in (watch.sentence(now - 600 * MS, now) or "")
    assert "3 s in the future" in (watch.sentence(now + 3 * NS_PER_S, now) or "")
    assert watch.sentence(now - 400 * MS, now) is None


def test_an_overtaken_message_is_refused_and_the_stream_goes_on() -> None:
    watch = StampWatch("ee_pose", max_age_s=0.0)
    assert watch.sentence(NS_PER_S, 0) is None
    assert "after a newer one" in (watch.sentence(NS_PER_S - 50 * MS, 0) or "")
    assert watch.sentence(NS_PER_S, 0) is None  # shown again, as a world in lockstep does
    assert watch.sentence(NS_PER_S + 50 * MS, 0) is None


def test_a_stream_that_starts_anew_far_back_is_followed() -> None:
    watch = StampWatch("ee_pose", max_age_s=0.0)
    assert watch.sentence(100 * NS_PER_S, 0) is None
    assert watch.sentence(2 * NS_PER_S, 0) is None
    assert watch.sentence(2 * NS_PER_S + 50 * MS, 0) is None


@given(st.lists(st.integers(1, 400), min_size=1, max_size=50))
def test_an_even_clock_never_jumps_however_late_it_is_asked(gaps_ms: list[int]) -> None:
    watch, now_ns, steady_s = ClockWatch(0.5), 5 * NS_PER_S, 7.0
    for gap in gaps_ms:
        assert watch.jump_s(now_ns, steady_s) is None
        now_ns, steady_s = now_ns + gap * MS, steady_s + gap / 1000


def test_a_set_clock_jumps_once_either_way() -> None:
    for jump_s in (-30, 2):
        watch = ClockWatch(0.5)
        assert watch.jump_s(0, 0.0) is None
        assert watch.jump_s((jump_s * 1000 + 100) * MS, 0.1) == jump_s
        assert watch.jump_s((jump_s * 1000 + 200) * MS, 0.2) is None


def test_an_arm_rests_when_it_stayed_for_the_whole_window() -> None:
    watch = RestWatch(window_s=0.2)
    assert not watch.at_rest  # nothing is known of it
    for tick in range(10):
        watch.see(tick * 50 * MS, pose(0.01 * tick))
    assert not watch.at_rest
    for tick in range(10, 14):
        watch.see(tick * 50 * MS, pose(0.09))
    assert watch.at_rest


def test_an_arm_that_only_turns_does_not_rest() -> None:
    watch = RestWatch(window_s=0.2)
    for tick in range(5):
        watch.see(tick * 50 * MS, pose(turn=0.01 * tick))
    assert not watch.at_rest


def test_stamps_that_start_anew_forget_the_poses_before() -> None:
    watch = RestWatch(window_s=0.2)
    watch.see(100 * NS_PER_S, pose(0.5))
    watch.see(2 * NS_PER_S, pose(0.0))
    assert watch.at_rest


def test_the_distance_of_two_poses_is_in_metres_and_radians() -> None:
    metres, radians = distance(pose(0.1, 0.2), pose(-0.2, -0.1))
    assert np.isclose(metres, 0.3)
    assert np.isclose(radians, 0.3)


def test_a_clock_that_stands_still_is_no_jump_and_is_noticed() -> None:
    """Simulated time goes in steps; only a step that does not come for too long counts."""
    watch = ClockWatch(0.5)
    for tick in range(20):
        watch.jump_s(tick // 2 * 50 * MS, 0.025 * tick)
        assert watch.still_s is None
    stopped_s = 0.025 * 18
    for tick in range(1, 10):
        assert watch.jump_s(9 * 50 * MS, stopped_s + 0.1 * tick) is None
        assert (watch.still_s is not None) == (tick > 5)
    watch.jump_s(10 * 50 * MS, stopped_s + 1.0)
    assert watch.still_s is None
