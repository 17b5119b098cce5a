"""Between ROS messages and plain arrays: the only code that knows both sides."""

from __future__ import annotations

import array
from typing import Protocol

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import Image, JointState
from transforms3d.quaternions import mat2quat, quat2mat

from dtvla.control.action_chunk import NS_PER_S, Chunk
from dtvla.control.limits.cartesian import check_layout
from dtvla.control.limits.gripper import GripperRequest
from dtvla.control.limits.motion import Pose
from dtvla.control.open_loop_executor import Command
from dtvla.control.pose_servo import Target
from dtvla.nodes.common.parameters import Refusal
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta

ENCODING = "rgb8"
MAX_IMAGE_SIDE_PX = 4096
QUATERNION_TOLERANCE = 0.01


def to_ns(stamp: Time) -> int:
    """A ROS time as integer nanoseconds."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def to_time(nanoseconds: int) -> Time:
    """Integer nanoseconds as a ROS time."""
    return Time(sec=nanoseconds // NS_PER_S, nanosec=nanoseconds % NS_PER_S)


def to_duration(seconds: float) -> Duration:
    """Seconds as a ROS duration."""
    nanoseconds = round(seconds * NS_PER_S)
    return Duration(sec=nanoseconds // NS_PER_S, nanosec=nanoseconds % NS_PER_S)


def image_message(picture: NDArray[np.uint8], stamp: Time, frame: str) -> Image:
    """RGB uint8 [H, W, 3] as a message."""
    height, width, _ = picture.shape
    message = Image(height=height, width=width, encoding=ENCODING, step=3 * width)
    message.header.stamp = stamp
    message.header.frame_id = frame
    message.data = array.array("B", picture.tobytes())  # any other type is copied byte by byte
    return message


def picture_from(message: Image, camera: str) -> NDArray[np.uint8]:
    """The picture of an image message, RGB uint8 [H, W, 3], without a copy.

    Raises:
        Refusal: another encoding, an impossible size, or data that do not fill it.
    """
    height, width = message.height, message.width
    if message.encoding != ENCODING:
        raise Refusal(
            f"The images of camera '{camera}' are encoded as '{message.encoding}'; '{ENCODING}' is needed. "
            "Set the driver's output encoding, or convert them (image_proc)."
        )
    if not (0 < height <= MAX_IMAGE_SIDE_PX and 0 < width <= MAX_IMAGE_SIDE_PX):
        raise Refusal(
            f"Camera '{camera}' sent an image of {width}x{height} px; 1 to {MAX_IMAGE_SIDE_PX} are possible."
        )
    if message.step < 3 * width or len(message.data) != height * message.step:
        raise Refusal(
            f"Camera '{camera}' sent {len(message.data)} bytes in rows of {message.step} for "
            f"{width}x{height} px; {height * 3 * width} bytes in rows of {3 * width} are needed. "
            "Check the camera's driver."
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, message.step)
    return rows[:, : 3 * width].reshape(height, width, 3)


class Units(Protocol):
    """What turns raw actions into a chunk: a policy's spec, or the benchmark's own figures."""

    @property
    def control_period_s(self) -> float: ...

    @property
    def execute_steps(self) -> int: ...

    def metric(self, raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]: ...


def chunk_message(
    spec: Units, raw: NDArray[np.float64], *, decision_id: int, stamp_ns: int, base_frame: str
) -> ActionChunk:
    """Raw actions [h, 7] as a chunk, without its words and its duration."""
    translations, rotations, openings = spec.metric(raw)
    message = ActionChunk(
        decision_id=decision_id,
        horizon=len(raw),
        execute_steps=min(spec.execute_steps, len(raw)),
        control_period=spec.control_period_s,
        translations=_doubles(translations),
        rotations=_doubles(rotations),
        gripper_openings=_doubles(openings),
        raw_actions=_doubles(raw),
    )
    message.header.stamp = to_time(stamp_ns)
    message.header.frame_id = base_frame
    return message


def chunk_from(message: ActionChunk, base_frame: str) -> Chunk:
    """The chunk in a message, with its arrays in shape.

    Raises:
        Refusal: counts that do not fit, or another frame. (Values are checked by `limits.check_chunk`.)
    """
    flat = {
        "translations": np.asarray(message.translations, np.float64),
        "rotations": np.asarray(message.rotations, np.float64),
        "gripper_openings": np.asarray(message.gripper_openings, np.float64),
        "raw_actions": np.asarray(message.raw_actions, np.float64),
    }
    sentence = check_layout(
        horizon=message.horizon,
        execute_steps=message.execute_steps,
        period_s=message.control_period,
        sizes={name: len(values) for name, values in flat.items()},
    )
    if sentence is None and message.header.frame_id != base_frame:
        sentence = (
            f"The chunk's deltas are in frame '{message.header.frame_id}'; the controller works in "
            f"'{base_frame}'. Give both nodes the same base_frame."
        )
    if sentence is not None:
        raise Refusal(sentence)
    return Chunk(
        decision_id=message.decision_id,
        stamp_ns=to_ns(message.header.stamp),
        period_ns=round(message.control_period * NS_PER_S),
        execute_steps=message.execute_steps,
        translations=flat["translations"].reshape(-1, 3),
        rotations=flat["rotations"].reshape(-1, 3),
        gripper_openings=flat["gripper_openings"],
        raw_actions=flat["raw_actions"].reshape(-1, 7),
        hold=message.hold,
    )


def delta_message(command: Command, base_frame: str) -> EndEffectorDelta:
    """The controller's answer to one tick as a message."""
    message = EndEffectorDelta(
        decision_id=command.decision_id,
        row=command.row,
        translation=_vector(command.translation),
        rotation=_vector(command.rotation),
        gripper_opening=command.gripper_opening_m,
        hold=command.hold,
    )
    message.header.stamp = to_time(command.tick_ns)
    message.header.frame_id = base_frame
    if command.raw_action is not None:
        message.raw_action = _doubles(command.raw_action)
    return message


def target_delta_message(target: Target, base_frame: str) -> EndEffectorDelta:
    """What an arm's target does within one tick, in the same form as a command to a simulated world."""
    message = delta_message(target.command, base_frame)
    message.translation, message.rotation = _vector(target.translation_m), _vector(target.rotation_rad)
    message.gripper_opening = target.gripper.opening_m
    message.raw_action = []
    return message


def gripper_message(request: GripperRequest, stamp_ns: int) -> JointState:
    """What the gripper is to do: its opening (m), speed (m/s) and force (N), as one joint."""
    message = JointState(name=["gripper"], position=[request.opening_m])
    message.velocity, message.effort = [request.speed_m_s], [request.force_n]
    message.header.stamp = to_time(stamp_ns)
    return message


def pose_message(pose: Pose, stamp_ns: int, frame: str) -> PoseStamped:
    """A pose of the end effector as a message."""
    message = PoseStamped()
    message.header.stamp = to_time(stamp_ns)
    message.header.frame_id = frame
    place, turn = message.pose.position, message.pose.orientation
    place.x, place.y, place.z = (float(value) for value in pose.position_m)
    turn.w, turn.x, turn.y, turn.z = (float(value) for value in mat2quat(pose.rotation))
    return message


def pose_from(message: PoseStamped, base_frame: str) -> Pose:
    """The pose in a message.

    Raises:
        Refusal: another frame, a value that is not finite, or no unit quaternion.
    """
    place, turn = message.pose.position, message.pose.orientation
    position = np.array([place.x, place.y, place.z])
    quaternion = np.array([turn.w, turn.x, turn.y, turn.z])
    if message.header.frame_id != base_frame:
        raise Refusal(
            f"The pose of the end effector is in frame '{message.header.frame_id}'; '{base_frame}' is "
            "needed. Set base_frame, or transform the pose."
        )
    length = float(np.linalg.norm(quaternion))
    if not np.isfinite(position).all() or not abs(length - 1.0) < QUATERNION_TOLERANCE:
        raise Refusal(
            f"The pose of the end effector is position {position.tolist()}, quaternion {quaternion.tolist()} "
            "(w, x, y, z); finite numbers and a quaternion of length 1 are needed. Check the robot's driver."
        )
    return Pose(position, np.asarray(quat2mat(quaternion)))


def _vector(values: NDArray[np.float64]) -> Vector3:
    x, y, z = (float(value) for value in values)
    return Vector3(x=x, y=y, z=z)


def _doubles(values: NDArray[np.float64]) -> array.array[float]:
    return array.array("d", np.ascontiguousarray(values, np.float64).tobytes())
