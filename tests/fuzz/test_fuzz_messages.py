"""A message with anything in it becomes a value within bounds, or is refused in a sentence."""

from __future__ import annotations

import array
import multiprocessing
import resource as limits_of_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, fuzz, in_words, new_folder, values
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from dtvla.control.limits.cartesian import Limits, check_chunk
from dtvla.nodes.common.conversions import chunk_from, image_message, picture_from, pose_from, to_ns, to_time
from dtvla.nodes.common.instructions import checked
from dtvla.nodes.common.parameters import SCHEMAS, Refusal, validate
from dtvla.nodes.common.rate_limit import RateLimit
from dtvla.nodes.policy.policy_node import robots
from dtvla.nodes.policy.task_action_server import check_timeout
from dtvla.nodes.recorder.bag_writer import BagWriter
from dtvla.nodes.recorder.recorder_node import file_name
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta, Reasoning, TaskState

FRAME = "panda_link0"
LIMITS = Limits()
sides = st.one_of(st.integers(0, 20), st.sampled_from([4096, 4097, 2**31, 2**32 - 1]))
numbers = st.one_of(st.floats(-0.02, 0.02), st.floats(), st.sampled_from([float("nan"), float("inf"), 1e308]))


@fuzz(300)
@given(
    height=sides,
    width=sides,
    step=st.one_of(st.integers(0, 100), st.sampled_from([2**32 - 1])),
    size=st.integers(0, 1500),
    encoding=st.sampled_from(["rgb8", "bgr8", "", "rgb8\0", "mono8"]),
    fitting=st.booleans(),
)
def test_an_image_is_the_picture_it_says_or_refused(
    height: int, width: int, step: int, size: int, encoding: str, fitting: bool
) -> None:
    if fitting and height <= 20 and width <= 20:
        step = 3 * width + step % 5
        size = height * step
    data = np.arange(size, dtype=np.uint32).astype(np.uint8)
    message = Image(height=height, width=width, step=step, encoding=encoding)
    message.data = array.array("B", data.tobytes())
    picture = in_words(lambda: picture_from(message, "wrist"), Refusal)
    if picture is not None:
        assert picture.shape == (height, width, 3)
        rows = data.reshape(height, step)[:, : 3 * width]
        assert (picture.reshape(height, -1) == rows).all()


@fuzz(100)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    ns=st.integers(0, 2**60),
)
def test_a_picture_survives_its_message(height: int, width: int, seed: int, ns: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    message = image_message(picture, to_time(ns), "camera")
    assert (picture_from(message, "camera") == picture).all()
    assert to_ns(message.header.stamp) == ns


@st.composite
def chunks(draw: st.DrawFn) -> ActionChunk:
    """Chunks whose counts mostly fit, and whose numbers are mostly small."""
    rows = draw(st.integers(0, 6))
    horizon = draw(st.one_of(st.just(rows), st.sampled_from([0, 1, 1001, 2**32 - 1])))
    message = ActionChunk(
        horizon=horizon,
        execute_steps=draw(st.one_of(st.integers(0, 7), st.just(2**32 - 1))),
        control_period=draw(st.one_of(st.just(0.05), st.floats())),
        decision_id=draw(st.integers(0, 2**32 - 1)),
        hold=draw(st.booleans()),
    )
    for name, width in (("translations", 3), ("rotations", 3), ("gripper_openings", 1), ("raw_actions", 7)):
        size = draw(st.one_of(st.just(rows * width), st.integers(0, 50)))
        setattr(message, name, array.array("d", draw(st.lists(numbers, min_size=size, max_size=size))))
    message.header.frame_id = draw(st.sampled_from([FRAME, FRAME, FRAME, "", "world", "\x1b[2J"]))
    message.header.stamp.sec = draw(st.integers(-(2**31), 2**31 - 1))
    message.header.stamp.nanosec = draw(st.integers(0, 2**32 - 1))
    return message


@fuzz(300)
@given(message=chunks())
def test_a_chunk_is_finite_and_within_bounds_or_refused(message: ActionChunk) -> None:
    chunk = in_words(lambda: chunk_from(message, FRAME), Refusal)
    if chunk is None:
        return
    assert chunk.horizon == message.horizon == len(chunk.raw_actions)
    sentence = check_chunk(chunk, LIMITS)
    if sentence is not None:
        assert sentence.endswith(".")
        return
    assert np.isfinite(chunk.translations).all()
    assert np.isfinite(chunk.raw_actions).all()
    fastest = np.linalg.norm(chunk.translations, axis=1).max() * 1e9 / chunk.period_ns
    assert fastest <= LIMITS.refuse_factor * LIMITS.max_linear_velocity_m_s * (1 + 1e-9)


@fuzz(200)
@given(
    place=st.tuples(numbers, numbers, numbers),
    turn=st.tuples(numbers, numbers, numbers, st.floats(0.99, 1.01)),
)
def test_a_pose_is_a_rotation_at_a_finite_place_or_refused(place: Any, turn: Any) -> None:
    message = PoseStamped()
    message.header.frame_id = FRAME
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = place
    orientation.x, orientation.y, orientation.z, orientation.w = turn
    pose = in_words(lambda: pose_from(message, FRAME), Refusal)
    if pose is not None:
        assert np.isfinite(pose.position_m).all()
        assert np.allclose(pose.rotation @ pose.rotation.T, np.eye(3), atol=1e-6)


@fuzz(200)
@given(text=st.text(max_size=60), longest=st.integers(1, 50))
def test_an_instruction_is_plain_and_short_or_refused(text: str, longest: int) -> None:
    words = in_words(lambda: checked(text, longest), Refusal)
    if words is not None:
        assert 0 < len(words) <= longest
        assert "\n" not in words
        assert "\x1b" not in words


@fuzz(300)
@given(name=st.sampled_from(sorted(SCHEMAS)), data=st.data())
def test_parameters_of_any_kind_are_within_bounds_or_refused(name: str, data: st.DataObject) -> None:
    schema = SCHEMAS[name]
    given_values: dict[str, object] = {parameter.name: parameter.default for parameter in schema}
    changed = data.draw(st.sampled_from(schema))
    given_values[changed.name] = data.draw(values)
    settings = in_words(lambda: validate(schema, given_values), Refusal)
    if settings is not None and isinstance(changed.default, float):
        assert changed.low <= settings.number(changed.name) <= changed.high


@fuzz(100)
@given(
    names=st.one_of(st.text(max_size=20), st.lists(st.sampled_from(["left", "a/b", "", " "])).map(",".join))
)
def test_robots_are_names_that_ros_knows_or_refused(names: str) -> None:
    found = in_words(lambda: robots(names), Refusal)
    assert found is None or found == [""] or all(name.isidentifier() for name in found)


@fuzz(100)
@given(timeout_s=st.floats())
def test_a_goal_has_a_time_that_can_be_counted_or_is_refused(timeout_s: float) -> None:
    if in_words(lambda: check_timeout(timeout_s) or True, Refusal):
        assert timeout_s <= 0 or round(timeout_s * 1e9) <= 86_400 * 10**9


@fuzz(100)
@given(words=st.text(max_size=300))
def test_a_task_of_any_name_is_recorded_in_the_recorders_own_folder(words: str) -> None:
    name = file_name(words)
    assert Path(name).name == name
    assert name not in (".", "..")


@fuzz(200)
@given(pauses=st.lists(st.floats(0, 0.5), max_size=80), per_second=st.floats(0.1, 50))
def test_no_second_lets_more_through_than_twice_the_rate(pauses: list[float], per_second: float) -> None:
    limit, now_s, passed = RateLimit("instructions", per_second, "rate"), 0.0, []
    for pause in pauses:
        now_s += pause
        if in_words(lambda now=now_s: limit.count(now) or True, Refusal):
            passed.append(now_s)
    for start in passed:
        within = sum(start <= moment < start + 1.0 for moment in passed)
        assert within <= 2 * max(1.0, per_second) + 1


KINDS = (Image, JointState, PoseStamped, String, ActionChunk, EndEffectorDelta, Reasoning, TaskState)


def serve(pipe: Connection) -> None:
    """The child: takes messages apart as the recorder does."""
    from rclpy.serialization import deserialize_message

    limits_of_process.setrlimit(limits_of_process.RLIMIT_AS, (8 << 30, 8 << 30))
    while True:
        index, content = pipe.recv()
        try:
            deserialize_message(content, KINDS[index])
            pipe.send("taken")
        except Exception as error:
            pipe.send(f"{type(error).__name__}")


def filled(kind: type) -> bytes:
    """A message of a kind with something in it, as it comes over the wire."""
    if kind is Image:
        return bytes(serialize_message(image_message(np.zeros((4, 4, 3), np.uint8), to_time(1), "camera")))
    if kind is ActionChunk:
        return bytes(serialize_message(ActionChunk(horizon=1, translations=[0.1] * 3, thought="A thought.")))
    if kind is JointState:
        return bytes(serialize_message(JointState(name=["a", "b"], position=[0.1, 0.2])))
    return bytes(serialize_message(kind()))


WHOLE = [filled(kind) for kind in KINDS]


def test_serialised_messages_with_damaged_bytes_do_not_take_a_node_down() -> None:
    """Each is taken apart or raises an exception, which every callback of our nodes is guarded against."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    answers = []

    @fuzz(300)
    @given(index=st.integers(0, len(KINDS) - 1), data=st.data())
    def take_apart(index: int, data: st.DataObject) -> None:
        content = data.draw(st.one_of(damaged(WHOLE[index]), st.binary(max_size=60)))
        pipe.send((index, content))
        assert pipe.poll(60), f"{KINDS[index].__name__} takes for ever: {content!r}"
        try:
            answers.append(pipe.recv())
        except EOFError:
            child.join()
            pytest.fail(f"The process died ({child.exitcode}) of a {KINDS[index].__name__}: {content!r}")

    try:
        take_apart()
    finally:
        child.kill()
    assert "taken" in answers


@fuzz(20)
@given(contents=st.lists(st.binary(max_size=100), min_size=1, max_size=5))
def test_a_bag_keeps_every_byte_of_what_came_whatever_it_is(contents: list[bytes]) -> None:
    with new_folder() as place:
        bag = BagWriter(place / "bag")
        for index, content in enumerate(contents):
            bag.write("/policy/reasoning", "dtvla_msgs/msg/Reasoning", index, content)
        bag.close()
        with Reader(place / "bag") as reader:
            assert [bytes(data) for _, _, data in reader.messages()] == contents
