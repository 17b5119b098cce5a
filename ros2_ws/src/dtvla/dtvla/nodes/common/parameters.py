"""Parameters of the nodes: one schema each, checked when a node is configured.

The YAML files in `config/` are checked against these schemas by a test. No ROS in here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtvla.control.options import ROBOT_NAMES
from dtvla.errors import InputError, plain
from dtvla.policy.options import BACKENDS, CAMERAS

Value = bool | int | float | str


class Refusal(InputError):
    """Something the node will not work with; the message is a plain sentence with a remedy.

    It may quote a message from outside, and is written to logs and terminals.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(plain(sentence))


@dataclass(frozen=True)
class Parameter:
    """One parameter of a node.

    Attributes:
        name: as in the YAML file; it carries its unit.
        default: gives the type as well (bool, int, float or str).
        sentence: what it does.
        unit: for people; empty when it has none.
        low, high: inclusive bounds of a number.
        choices: allowed strings; empty allows all.
    """

    name: str
    default: Value
    sentence: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    @property
    def bounds(self) -> str:
        """What is allowed, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return "text"
        low, high = self.low, self.high
        if math.isinf(low) and math.isinf(high):
            return "any number"
        if math.isinf(high):
            return f"at least {low:g}"
        return f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"

    def check(self, value: object) -> Value:
        """Returns `value` with the right type.

        Raises:
            Refusal: wrong type or out of bounds.
        """
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 2**63 else math.inf  # a ROS integer, or out of all bounds
        unit = f" {self.unit}" if self.unit else ""
        wanted = f"it must be {kind.__name__}, {self.bounds}{unit} (default {self.default!r})"
        if type(value) is not kind:
            raise Refusal(f"Parameter '{self.name}' is {value!r}; {wanted}.")
        assert isinstance(value, (bool, int, float, str))
        if isinstance(value, (int, float)) and not (self.low <= value <= self.high):
            raise Refusal(f"Parameter '{self.name}' is {value!r}; {wanted}.")
        if self.choices and value not in self.choices:
            raise Refusal(f"Parameter '{self.name}' is {value!r}; {wanted}.")
        return value


Schema = Sequence[Parameter]


class Settings:
    """Checked parameter values, read with the type the caller knows them to have."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def flag(self, name: str) -> bool:
        return bool(self._values[name])

    def integer(self, name: str) -> int:
        return int(self._values[name])

    def number(self, name: str) -> float:
        return float(self._values[name])

    def text(self, name: str) -> str:
        return str(self._values[name])


def validate(schema: Schema, values: Mapping[str, object]) -> Settings:
    """Checks all values of a node against its schema.

    Raises:
        Refusal: the first parameter that does not fit.
    """
    return Settings({parameter.name: parameter.check(values[parameter.name]) for parameter in schema})


BASE_FRAME = Parameter("base_frame", "panda_link0", "Frame of all poses and deltas: the robot's base.")

# The box the gripper may be in, in the base frame: the controller keeps to it, rviz shows it.
WORKSPACE = (
    Parameter("workspace_x_min_m", 0.15, "Where the workspace begins in front of the base.", "m", -2.0, 2.0),
    Parameter("workspace_x_max_m", 0.8, "Where it ends in front of the base.", "m", -2.0, 2.0),
    Parameter("workspace_y_min_m", -0.55, "Where it begins, at the base's right.", "m", -2.0, 2.0),
    Parameter("workspace_y_max_m", 0.55, "Where it ends, at the base's left.", "m", -2.0, 2.0),
    Parameter("workspace_z_min_m", -0.02, "Its lowest height above the base.", "m", -2.0, 2.0),
    Parameter("workspace_z_max_m", 0.8, "Its greatest height above the base.", "m", -2.0, 2.0),
)

LIBERO_BRIDGE = (
    Parameter("suite", "embedded", "Benchmark suite of the first episode."),
    Parameter("task", 0, "Index of the task in the suite.", low=0, high=1000),
    Parameter("seed", 0, "Seed of the object placement of the first episode.", low=0, high=2**31 - 1),
    Parameter("autostart", True, "Start the first episode on activation, without waiting for /reset_scene."),
    Parameter("repeat", False, "Start the next episode (seed + 1) when one is over."),
    Parameter("image_size_px", 128, "Side of the square camera images.", "px", 32, 1024),
    Parameter("fast_rendering", True, "Render without shadows, multi-sampling and reflections."),
    Parameter("render_unseen", False, "Render images that nobody subscribes to."),
    Parameter("lockstep", True, "The world waits for each command; false lets it run at 20 Hz."),
    Parameter(
        "follow", False, "Follow target_pose, as a real arm does, instead of the policy's own actions."
    ),
    Parameter(
        "max_steps", 0, "Control periods per episode; 0 takes the task's own limit.", low=0, high=100000
    ),
    Parameter(
        "resend_after_s", 1.0, "Publish a tick again when no command came for so long.", "s", 0.05, 60.0
    ),
    Parameter(
        "script",
        "",
        "Decides in the policy's place, knowing the state: expert, random, replay:FILE; empty: nothing does.",
    ),
    Parameter("examine", False, "Publish how each episode went on episode_result, as JSON."),
    BASE_FRAME,
)

POLICY = (
    Parameter("bundle", "", "Folder of the policy bundle; empty takes the one that ships with the package."),
    Parameter(
        "trusted_key",
        "",
        "File of the public key that must have signed the bundle; empty takes unsigned bundles too.",
    ),
    Parameter("backend", "auto", "Inference backend.", choices=BACKENDS),
    Parameter(
        "robots", "", "Namespaces of several robots, comma-separated; empty serves one without a namespace."
    ),
    Parameter("threads", 0, "Inference threads; 0 lets the backend choose.", low=0, high=256),
    Parameter("drafts", True, "Try the last thoughts as drafts of the next one: faster, the same words."),
    Parameter(
        "thought_tokens",
        0,
        "Most tokens of a thought; 0 takes the bundle's cap.",
        "tokens",
        low=0,
        high=100000,
    ),
    Parameter(
        "thought_s", 0.0, "After so long a decision closes its thought and acts; 0: never.", "s", 0.0, 600.0
    ),
    Parameter(
        "max_thought_age_s",
        0.0,
        "Above 0: act on the last thought, up to so old, and think meanwhile; 0: each decision thinks first.",
        "s",
        0.0,
        60.0,
    ),
    Parameter("instruction", "", "Instruction to start with; empty waits for /instruction or a goal."),
    Parameter("max_instruction_characters", 500, "Longer instructions are refused.", "characters", 1, 100000),
    Parameter(
        "max_instructions_per_s",
        10.0,
        "Instructions and goals that come faster are refused, and the arm holds.",
        "1/s",
        0.1,
        1000.0,
    ),
    Parameter(
        "pair_tolerance_s", 0.01, "Largest difference between the stamps of two cameras.", "s", 0.0, 1.0
    ),
    Parameter("image_timeout_s", 2.0, "A camera silent for so long is reported.", "s", 0.1, 60.0),
    Parameter(
        "max_image_age_s", 0.0, "Older images are refused (on a robot: 0.5); 0: any age.", "s", 0.0, 60.0
    ),
    Parameter(
        "frozen_image_s",
        0.0,
        "A camera that repeats one picture for so long is frozen (real cameras have noise: use 1); 0: never.",
        "s",
        0.0,
        60.0,
    ),
    BASE_FRAME,
)

CONTROLLER = (
    Parameter(
        "robot",
        "simulator",
        "simulator: the policy's deltas as they are; an arm: target poses within its limits.",
        choices=ROBOT_NAMES,
    ),
    Parameter("dry_run", True, "With an arm: show what it would be told, and tell it nothing."),
    Parameter(
        "chunk_mode",
        "open_loop",
        "How chunks are executed: at their own stamps (the benchmark's way), each from where the arm is, or "
        "averaged where they overlap.",
        choices=("open_loop", "receding", "ensembled"),
    ),
    Parameter("chunk_seam", "cut", "Passage to the next chunk, but in open_loop.", choices=("cut", "spline")),
    Parameter("lockstep", True, "Leave a tick unanswered until its chunk comes; false holds instead."),
    Parameter("rate_hz", 100.0, "Target poses per second, in real time.", "Hz", 10.0, 1000.0),
    Parameter(
        "anchor",
        "measured",
        "What a delta is added to: the measured pose, as in LIBERO, or the target before (scales of 0.25).",
        choices=("measured", "last_target"),
    ),
    Parameter("translation_scale", 1.0, "From the policy's metres to the arm's.", "", 0.001, 1.0),
    Parameter("rotation_scale", 1.0, "From the policy's radians to the arm's.", "", 0.001, 1.0),
    Parameter(
        "on_limit", "clamp", "A request beyond a limit is cut, or not followed.", choices=("clamp", "refuse")
    ),
    Parameter("max_linear_velocity_m_s", 1.8, "Longer translations are shortened.", "m/s", 0.001, 3.0),
    Parameter("max_angular_velocity_rad_s", 18.0, "Larger rotations are reduced.", "rad/s", 0.001, 20.0),
    Parameter(
        "limit_share", 0.5, "Share of the arm's own acceleration and jerk that is used.", "", 0.01, 1.0
    ),
    Parameter("joint_limits", True, "With an arm: keep joint positions and velocities (needs Pinocchio)."),
    Parameter("robot_model", "", "URDF or xacro for that; empty takes the one that ships with the package."),
    Parameter("tip_link", "", "Its link that ee_pose tells of; empty takes the point between the fingers."),
    *WORKSPACE,
    Parameter("min_gripper_opening_m", 0.0, "Smallest commanded opening.", "m", 0.0, 0.2),
    Parameter("max_gripper_opening_m", 0.08, "Largest commanded opening.", "m", 0.0, 0.2),
    Parameter("gripper_speed_m_s", 0.1, "Speed of the gripper.", "m/s", 0.001, 0.2),
    Parameter("gripper_force_n", 20.0, "Force with which it may press.", "N", 0.1, 70.0),
    Parameter("max_chunk_age_s", 1.0, "In real time, older chunks are refused.", "s", 0.01, 60.0),
    Parameter(
        "policy_timeout_s", 2.0, "In real time, a policy silent for so long is reported.", "s", 0.1, 60.0
    ),
    Parameter(
        "robot_timeout_s", 0.2, "With an arm: without its state for so long it holds.", "s", 0.02, 10.0
    ),
    Parameter("max_state_age_s", 0.5, "With an arm: an older pose is not used; 0: any age.", "s", 0.0, 10.0),
    Parameter("clock_jump_s", 0.5, "A clock that jumps by more drops what is planned.", "s", 0.05, 60.0),
    Parameter("max_following_error_m", 0.1, "An arm farther from its target holds.", "m", 0.005, 1.0),
    Parameter("max_following_error_rad", 0.5, "The same for its turn.", "rad", 0.01, 3.0),
    BASE_FRAME,
)

RECORDER = (
    Parameter("output", "runs/recording", "Folder for the bag and the videos; created when missing."),
    Parameter("bag", True, "Write an MCAP bag of all topics."),
    Parameter("bag_images", True, "Put the camera images into the bag as well (2 MB per second)."),
    Parameter(
        "min_free_mb", 256.0, "With less room on the disk recording ends, complete.", "MB", 0.0, 1000000.0
    ),
    Parameter("video", True, "Write one MP4 per episode: the cameras beside the thought."),
    Parameter(
        "frame_rate_hz", 20.0, "Frame rate of the video: one frame per control period.", "Hz", 1.0, 120.0
    ),
)

SILENCE = Parameter(
    "silence_s", 5.0, "What the policy said disappears after so long without a word from it.", "s", 2.0, 600.0
)

REASONING_MARKERS = (
    Parameter("board_x_m", 0.6, "Where the words stand, in front of the base.", "m", -5.0, 5.0),
    Parameter("board_y_m", -1.1, "Where the words stand, to the base's left.", "m", -5.0, 5.0),
    Parameter("board_z_m", 0.85, "Height of the first line of the words.", "m", -5.0, 5.0),
    Parameter("text_height_m", 0.04, "Height of the letters.", "m", 0.005, 0.5),
    Parameter("wrap_characters", 36, "Most characters of a line.", "characters", 10, 200),
    Parameter("thought_lines", 12, "Most lines of a thought.", "lines", 1, 100),
    Parameter("line_width_m", 0.006, "Width of the planned path.", "m", 0.001, 0.1),
    Parameter(
        "translation_scale",
        0.25,
        "Share of a planned translation that the arm really makes; LIBERO's simulated arm: 0.25 (measured).",
        "",
        0.001,
        1.0,
    ),
    Parameter("past_chunks", 5, "So many past paths stay, each fainter.", "chunks", 0, 50),
    Parameter("gripper_half_open_m", 0.04, "A gripper opened farther counts as open.", "m", 0.001, 0.2),
    Parameter("rate_hz", 10.0, "Most updates per second.", "Hz", 0.5, 60.0),
    SILENCE,
    *WORKSPACE,
    BASE_FRAME,
)

REASONING_OVERLAY = (
    Parameter("cameras", ",".join(CAMERAS), "Cameras to show, comma-separated: one or two."),
    Parameter("rate_hz", 5.0, "Most pictures per second.", "Hz", 0.1, 60.0),
    SILENCE,
)

LIFECYCLE_MANAGER = (
    Parameter(
        "nodes",
        "controller_node,policy_node",
        "Nodes in the order of activation, comma-separated; NAME=SECONDS: its longest silence (else 10).",
    ),
    Parameter(
        "start_timeout_s", 60.0, "A node that does not answer for so long has not started.", "s", 1.0, 3600.0
    ),
    Parameter(
        "transition_timeout_s",
        120.0,
        "Longest time to configure a node, and to activate it.",
        "s",
        1.0,
        3600.0,
    ),
)

SCHEMAS: dict[str, Schema] = {
    "libero_bridge_node": LIBERO_BRIDGE,
    "policy_node": POLICY,
    "controller_node": CONTROLLER,
    "recorder_node": RECORDER,
    "reasoning_markers_node": REASONING_MARKERS,
    "reasoning_overlay_node": REASONING_OVERLAY,
    "lifecycle_manager_node": LIFECYCLE_MANAGER,
}
