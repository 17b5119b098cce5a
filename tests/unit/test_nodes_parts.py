"""The parts of the nodes that know no ROS: pairing, replanning, inference thread, console, video, session."""

from __future__ import annotations

import threading
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from dtvla.control.replanning_rule import ReplanningRule
from dtvla.evaluation.video import SIZE, Caption, EpisodeVideo, Painter
from dtvla.nodes.common.instructions import checked
from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.common.rate_limit import RateLimit
from dtvla.nodes.policy.image_synchroniser import ImageSynchroniser, SynchronisedImages
from dtvla.nodes.policy.inference_thread import Discarded, InferenceRequest, InferenceThread
from dtvla.nodes.policy.policy_node import robots
from dtvla.nodes.policy.task_action_server import check_timeout
from dtvla.nodes.recorder.recorder_node import file_name
from dtvla.nodes.viewers.console_view import ConsoleState, episode_line, latency_line, panel, thought_line
from dtvla.sim.env import raw_action

PERIOD_NS = 50_000_000
PICTURE = np.zeros((8, 8, 3), np.uint8)


def synchroniser() -> ImageSynchroniser:
    return ImageSynchroniser(("agentview", "wrist"), tolerance_s=0.01)


def test_a_look_needs_both_cameras_from_one_moment() -> None:
    pair = synchroniser()
    assert pair.see("agentview", 0, PICTURE, 0.0) is None
    assert pair.see("wrist", PERIOD_NS, PICTURE, 0.0) is None  # a period apart
    observation = pair.see("agentview", PERIOD_NS - 5_000_000, PICTURE, 0.0)  # 5 ms apart
    assert observation is not None
    assert observation.stamp_ns == PERIOD_NS
    assert set(observation.pictures) == {"agentview", "wrist"}


def test_a_refused_picture_does_not_leave_an_old_one_in_its_place() -> None:
    pair = synchroniser()
    pair.see("wrist", 0, PICTURE, 0.0)
    pair.drop("wrist")
    assert pair.see("agentview", 0, PICTURE, 0.0) is None


def test_silent_cameras_are_counted_from_the_start_or_from_their_last_picture() -> None:
    pair = synchroniser()
    pair.see("wrist", 0, PICTURE, now_s=11.0)
    assert pair.silent(now_s=11.5, timeout_s=2.0, since_s=10.0) == []
    assert pair.silent(now_s=12.5, timeout_s=2.0, since_s=10.0) == ["agentview"]
    assert pair.silent(now_s=13.5, timeout_s=2.0, since_s=10.0) == ["agentview", "wrist"]


def test_a_camera_that_repeats_one_picture_is_frozen_until_the_picture_changes() -> None:
    pair = ImageSynchroniser(("agentview", "wrist"), tolerance_s=0.01, frozen_after_s=1.0)
    rng = np.random.default_rng(0)
    for tick in range(40):
        stamp = tick * PERIOD_NS
        pair.see("agentview", stamp, rng.integers(0, 256, PICTURE.shape, np.uint8), 0.0)
        observation = pair.see("wrist", stamp, PICTURE, 0.0)
        assert (observation is None) == (pair.frozen() == ["wrist"]) == (stamp >= 1_000_000_000)
    assert pair.see("wrist", 39 * PERIOD_NS, PICTURE + 1, 0.0) is not None
    assert pair.frozen() == []


def test_pictures_may_stay_the_same_where_the_world_may_rest() -> None:
    pair = synchroniser()
    for tick in range(400):
        pair.see("agentview", tick * PERIOD_NS, PICTURE, 0.0)
        assert pair.see("wrist", tick * PERIOD_NS, PICTURE, 0.0) is not None


def test_cameras_that_never_show_one_moment_are_told_how_far_they_are_apart() -> None:
    pair = synchroniser()
    for tick in range(60):
        pair.see("agentview", tick * PERIOD_NS, PICTURE, tick * 0.05)
        assert pair.see("wrist", tick * PERIOD_NS + 20_000_000, PICTURE, tick * 0.05) is None
    assert pair.apart_s(now_s=1.0, timeout_s=2.0, since_s=0.0) is None
    assert pair.apart_s(now_s=3.0, timeout_s=2.0, since_s=0.0) == pytest.approx(0.02)
    pair.see("agentview", 59 * PERIOD_NS + 20_000_000, PICTURE, 3.0)
    assert pair.apart_s(now_s=3.1, timeout_s=2.0, since_s=0.0) is None


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        (None, 0, True),  # the first look
        (0, 4 * PERIOD_NS, False),
        (0, 5 * PERIOD_NS, True),
        (0, 5 * PERIOD_NS - PERIOD_NS // 4, True),  # jitter
        (0, 20 * 5 * PERIOD_NS, True),  # another episode
        (100 * PERIOD_NS, 99 * PERIOD_NS, True),  # the clock was set back
    ],
)
def test_a_decision_is_due_once_per_interval_and_after_a_jump(last: int | None, now: int, due: bool) -> None:
    assert ReplanningRule(5 * PERIOD_NS, PERIOD_NS, last).due(now) == due


def request(number: int, robot: str = "") -> InferenceRequest:
    return InferenceRequest(robot, number, SynchronisedImages(0, {}), "Pick up the can", fresh=False)


def test_the_worker_forgets_a_discarded_job_and_takes_the_next() -> None:
    started, release, done = threading.Event(), threading.Event(), threading.Event()
    wanted: dict[int, bool] = {}

    def work(requests: list[tuple[InferenceRequest, Discarded]]) -> None:
        ((current, discarded),) = requests
        started.set()
        release.wait(10)
        wanted[current.decision_id] = not discarded()
        if current.decision_id == 2:
            done.set()

    worker = InferenceThread(work)
    worker.submit(request(1))
    assert started.wait(10)
    assert worker.busy("")
    worker.discard("")
    assert not worker.busy("")
    worker.submit(request(2))
    release.set()
    assert done.wait(10)
    worker.close()
    assert wanted == {1: False, 2: True}


def test_robots_that_wait_while_others_decide_are_served_together() -> None:
    started, release, done = threading.Event(), threading.Event(), threading.Event()
    served: list[list[tuple[str, bool]]] = []

    def work(requests: list[tuple[InferenceRequest, Discarded]]) -> None:
        started.set()
        release.wait(10)
        served.append([(current.robot, not discarded()) for current, discarded in requests])
        if len(served) == 2:
            done.set()

    worker = InferenceThread(work)
    worker.submit(request(1, "left"))
    assert started.wait(10)
    worker.submit(request(2, "right"))
    worker.submit(request(3, "third"))
    worker.discard("third")
    worker.submit(request(4, "fourth"))
    assert [worker.busy(name) for name in ("left", "right", "third")] == [True, True, False]
    release.set()
    assert done.wait(10)
    worker.close()
    assert served == [[("left", True)], [("right", True), ("fourth", True)]]


def test_a_closed_worker_ends_its_thread() -> None:
    before = threading.active_count()
    worker = InferenceThread(lambda requests: None)
    worker.close()
    assert threading.active_count() == before


def test_robots_are_named_by_namespaces_that_ros_allows() -> None:
    assert robots("") == [""]
    assert robots("left, /right") == ["left", "right"]
    for wrong, words in [("2nd", "no namespace"), ("a,a", "different names"), ("a,", "different names")]:
        with pytest.raises(Refusal, match=words):
            robots(wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("x" * 501, "501 characters"),
        ("a\x00b", r"U\+0000"),
        ("a\nb", r"U\+000A"),
    ],
)
def test_a_bad_instruction_is_refused_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        checked(text, 500)


def test_a_good_instruction_loses_only_its_surrounding_blanks() -> None:
    assert (
        checked("  Lege die Dose in den Korb, bitte – 取 🥫 \n", 500)
        == "Lege die Dose in den Korb, bitte – 取 🥫"
    )


def test_the_console_tells_task_thought_and_latency() -> None:
    scene = ConsoleState(
        task="can",
        instruction="Pick up the can",
        seed=3,
        episode=2,
        step=40,
        max_steps=260,
        thought="The can is 12 cm left.",
        tokens=20,
        thinking=True,
        latencies_ms={"vision": 12.4, "total": 140.0},
        problems={"controller_node": "The arm is stopped."},
    )
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(panel(scene, 80))
    text = console.export_text()
    for words in (
        "Pick up the can",
        "step 40 of 260",
        "The can is 12 cm left. ▌",
        "vision 12 ms, total 140 ms",
    ):
        assert words in text
    assert "controller_node: The arm is stopped." in text
    assert max(len(line) for line in text.splitlines()) <= 77
    assert latency_line(ConsoleState()) == ""
    assert thought_line(scene) == "step  40/260  The can is 12 cm left. [140 ms]"
    assert episode_line(scene) == "Episode 2 (can, seed 3): Pick up the can"
    ended = ConsoleState(task="can", seed=3, episode=2, step=99, done=True, success=True)
    assert episode_line(ended) == "Episode 2 (can, seed 3): solved after 99 steps."


def test_a_video_holds_the_frames_it_was_given(tmp_path: Path) -> None:
    caption = Caption("Pick up the can", "The can is here. " * 40, "decision 1", "step 1 of 2", True)
    frame = Painter().frame({"agentview": PICTURE, "wrist": PICTURE + 255}, caption)
    assert frame.shape == (SIZE[1], SIZE[0], 3)
    video = EpisodeVideo(tmp_path / "a" / "episode.mp4", 20.0)
    video.add(frame, 3)
    video.close()
    with av.open(str(video.path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
        assert container.streams.video[0].average_rate == 20


def test_a_metric_delta_becomes_the_benchmarks_action() -> None:
    action = raw_action((0.05, -0.025, 0.0), (0.0, 0.25, -0.5), 0.08)
    np.testing.assert_allclose(action, [1, -0.5, 0, 0, 0.5, -1, -1])
    assert raw_action((1.0, 0, 0), (0, 0, 0), 0.0).tolist() == [1, 0, 0, 0, 0, 0, 1]  # clipped, closed


def test_a_refusal_quotes_a_message_without_what_a_terminal_would_act_on_and_not_at_length() -> None:
    sentence = str(Refusal("The frame is '\x1b[2J\n\ud800'."))
    assert sentence == "The frame is '\\x1b[2J\\n\\ud800'."
    assert len(str(Refusal("x" * 10_000_000))) < 3000


def test_a_burst_passes_and_a_flood_is_refused_until_it_ebbs() -> None:
    limit = RateLimit("instructions", 2.0, "max_instructions_per_s")
    limit.count(0.0)
    limit.count(0.0)
    for now_s in (0.0, 0.1, 0.4):
        with pytest.raises(Refusal, match=r"More than 2 instructions per second.*max_instructions_per_s"):
            limit.count(now_s)
    limit.count(1.0)


def test_a_rate_below_one_still_lets_the_first_through() -> None:
    limit = RateLimit("instructions", 0.1, "rate")
    limit.count(0.0)
    with pytest.raises(Refusal):
        limit.count(5.0)
    limit.count(10.1)


def test_a_tasks_name_cannot_lead_the_recorder_to_another_folder() -> None:
    assert file_name("pick_up_the_can") == "pick_up_the_can"
    assert file_name("../../etc/x") == "______etc_x"
    assert len(file_name("a" * 5000)) == 80


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf"), 1e300])
def test_a_goal_with_a_time_that_cannot_be_counted_is_refused(timeout_s: float) -> None:
    """`round(inf * 1e9)` ended the goal's execution with an exception, and nobody followed it any more."""
    with pytest.raises(Refusal, match="timeout"):
        check_timeout(timeout_s)


@pytest.mark.parametrize("timeout_s", [-float("inf"), -1.0, 0.0, 60.0, 86_400.0])
def test_a_goal_may_have_any_time_up_to_a_day_or_none(timeout_s: float) -> None:
    check_timeout(timeout_s)
