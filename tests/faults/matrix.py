"""The faults: what is done, when the controller can know of it, and what must follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.faults.fault_actions import (
    ALLOWED_S,
    Context,
    _nothing,
    after_watch,
    at_once,
    calm,
    check_bag,
    check_disk,
    check_inference_words,
    clock_still,
    fill_disk,
    heal,
    huge_instruction,
    intrude,
    kill,
    let_disk_fill,
    pause,
    plan_over,
    provoke,
    remember_bag,
    restart,
    resume,
    rival_found,
    send_off,
    spoil,
    state_silent,
)

IMAGES = ["agentview/image_raw", "wrist/image_raw"]
CHUNKS = ["policy/action_chunk"]

Know = Callable[[Context, float, float], float]


@dataclass(frozen=True)
class Fault:
    """One row of the matrix.

    Attributes:
        name: for --only.
        what: in words.
        begin, end: does it; undoes it (restart, pass on again). `begin` returns from when it acts.
        lasts_s: between the two.
        know: the moment from which the controller can know that it must hold, given (context, begin, end).
        moment: that moment in words; empty when no hold is needed: the graph goes on.
        middle: it needs the process in the middle.
        check: what must be true besides, told in a sentence when it is not.
    """

    name: str
    what: str
    begin: Callable[[Context], float]
    end: Callable[[Context], None]
    lasts_s: float
    moment: str = ""
    know: Know | None = None
    middle: bool = False
    check: Callable[[Context], str] | None = None

    @property
    def holds(self) -> bool:
        return self.know is not None


USED_UP = "its last good chunk used up"
SILENT = "the arm's state silent for robot_timeout_s (0.2 s)"


def _process_faults() -> list[Fault]:
    found = []
    for node, seconds in (
        ("policy_node", 4.0),
        ("controller_node", 2.0),
        ("libero_bridge_node", 2.0),
    ):
        name = node.removesuffix("_node").removeprefix("libero_")
        know, moment = {
            "policy": (plan_over, USED_UP),
            "controller": (at_once, "it is the one that is gone: no more commands"),
            "bridge": (state_silent, SILENT),
        }[name]
        words = {"bridge": "the robot's driver (bridge)"}.get(name, f"the {name}")
        found += [
            Fault(
                f"kill-{name}",
                f"kill -9 of {words}, started anew after {seconds:g} s",
                partial(kill, node),
                partial(restart, node),
                seconds,
                moment,
                know,
            ),
            Fault(
                f"pause-{name}",
                f"SIGSTOP of {words} for {seconds:g} s, then SIGCONT",
                partial(pause, node),
                partial(resume, node),
                seconds,
                moment,
                know,
            ),
        ]
    for node in ("recorder_node", "reasoning_markers_node"):
        name = node.removesuffix("_node").removeprefix("reasoning_")
        found += [
            Fault(
                f"kill-{name}",
                f"kill -9 of the {name} node, started anew",
                remember_bag if name == "recorder" else partial(kill, node),
                partial(restart, node),
                2.0,
                check=check_bag if name == "recorder" else None,
            ),
            Fault(
                f"pause-{name}",
                f"SIGSTOP of the {name} node for 2 s",
                partial(pause, node),
                partial(resume, node),
                2.0,
            ),
        ]
    return found


def _noise_faults() -> list[Fault]:
    rival = "its own discovery of the second publisher, by its report"
    return [
        Fault(
            "second-policy",
            "a second policy publishes chunks",
            partial(intrude, "second_policy"),
            send_off,
            3.0,
            rival,
            rival_found,
        ),
        Fault(
            "second-arm",
            "a second node publishes target_pose",
            partial(intrude, "second_arm"),
            send_off,
            3.0,
            rival,
            rival_found,
        ),
        Fault(
            "wrong-types",
            "a participant publishes strings on our topics",
            partial(intrude, "wrong_types"),
            send_off,
            3.0,
        ),
        Fault(
            "second-clock", "a second /clock, an hour ahead", partial(intrude, "clock_jumps"), send_off, 3.0
        ),
        Fault(
            "huge-instruction",
            "an instruction of 8 MB",
            huge_instruction,
            send_off,
            3.0,
            "the policy's hold, or " + USED_UP,
            plan_over,
        ),
        Fault(
            "huge-image",
            "foreign pictures of 4096 x 4096 px on a camera's topic",
            partial(intrude, "huge_image"),
            send_off,
            5.0,
        ),
        Fault(
            "huge-chunk",
            "foreign chunks of a million rows (112 MB each)",
            partial(intrude, "huge_chunk"),
            send_off,
            6.0,
        ),
    ]


def _message_faults() -> list[Fault]:
    def message(
        name: str,
        what: str,
        topics: list[str],
        fault: str,
        value: float = 0.0,
        *,
        lasts_s: float = 3.0,
        due: tuple[str, Know | None] = ("", None),
    ) -> Fault:
        return Fault(
            name,
            what,
            partial(spoil, topics, fault, value),
            partial(heal, topics),
            lasts_s,
            *due,
            middle=True,
        )

    used, silent = (USED_UP, plan_over), (SILENT, state_silent)
    jumped = ("the first jumped /clock, plus the controller's look every 0.1 s", after_watch)
    return [
        message("chunks-dropped", "no chunk arrives for 3 s", CHUNKS, "drop", due=used),
        message("chunks-lossy", "half of the chunks are lost", CHUNKS, "drop_some", 0.5),
        message("chunks-delayed", "each chunk comes 0.4 s late", CHUNKS, "delay", 0.4),
        message(
            "chunks-stale",
            "each chunk comes 1.5 s late (1 s is allowed)",
            CHUNKS,
            "delay",
            1.5,
            lasts_s=5.0,
        ),
        message("chunks-duplicated", "each chunk three times", CHUNKS, "duplicate", 0.1),
        message("chunks-reordered", "each second chunk before its forerunner", CHUNKS, "reorder"),
        message("chunk-nan", "each chunk holds a NaN", CHUNKS, "nan", due=used),
        message(
            "chunk-rows", "each chunk has a million rows (112 MB)", CHUNKS, "rows", 1e6, lasts_s=5.0, due=used
        ),
        message("image-size", "images say 7 x 5 px", IMAGES, "size", due=used),
        message("image-encoding", "images in another encoding", IMAGES, "encoding", due=used),
        message("image-truncated", "half of each image's data is missing", IMAGES, "truncate", due=used),
        message("camera-silent", "one camera sends nothing", IMAGES[:1], "drop", due=used),
        message(
            "camera-frozen",
            "one camera repeats one picture with new stamps (frozen_image_s: 1)",
            IMAGES[:1],
            "freeze",
            lasts_s=5.0,
            due=used,
        ),
        message("image-past", "one camera's stamps lie 5 s back", IMAGES[:1], "shift", -5.0, due=used),
        message("pose-nan", "the arm's pose holds a NaN", ["ee_pose"], "nan", due=silent),
        message("joints-nan", "all joint positions are NaN", ["joint_states"], "nan", due=silent),
        message("pose-silent", "no pose of the arm", ["ee_pose"], "drop", due=silent),
        message("pose-past", "the pose's stamps lie 5 s back", ["ee_pose"], "shift", -5.0, due=silent),
        message("pose-future", "the pose's stamps lie 5 s ahead", ["ee_pose"], "shift", 5.0, due=silent),
        message(
            "clock-forward",
            "/clock jumps 10 s ahead, and back at the end",
            ["/clock"],
            "shift",
            10.0,
            due=jumped,
        ),
        message(
            "clock-backward",
            "/clock jumps 10 s back, and ahead at the end",
            ["/clock"],
            "shift",
            -10.0,
            due=jumped,
        ),
        message(
            "clock-still",
            "/clock stands still",
            ["/clock"],
            "drop",
            due=("no progress for clock_jump_s (0.5 s), plus the controller's look every 0.1 s", clock_still),
        ),
    ]


def _storage_faults() -> list[Fault]:
    return [
        Fault(
            "disk-fills",
            "the recorder's disk (24 MB) fills up by its own bag",
            let_disk_fill,
            _nothing,
            22.0,
            check=check_disk,
        ),
        Fault(
            "disk-full",
            "another program fills the recorder's disk within a moment",
            fill_disk,
            _nothing,
            3.0,
            check=check_disk,
        ),
    ]


PROVIDER = Fault(
    "provider-fails",
    "the inference session raises (a Gather of the bundle's decoder.onnx leaves its data on one word)",
    provoke,
    calm,
    3.0,
    "the policy's hold, or " + USED_UP,
    plan_over,
    check=check_inference_words,
)


def all_faults() -> list[Fault]:
    """The matrix, those that share a graph beside each other."""
    return [*_process_faults(), PROVIDER, *_noise_faults(), *_storage_faults(), *_message_faults()]


__all__ = ["ALLOWED_S", "Context", "Fault", "all_faults"]
