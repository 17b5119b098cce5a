"""What the controller node is built of where an arm is behind it: poses in messages, guards, set-up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla.control.action_chunk import NS_PER_S
from dtvla.control.limits.motion import Pose
from dtvla.control.robots import FR3, PANDA, ROBOTS, RobotLimits
from dtvla.control.rotations import exp_rotation
from dtvla.nodes.common.conversions import pose_from, pose_message
from dtvla.nodes.common.parameters import CONTROLLER, Refusal, Settings, validate
from dtvla.nodes.controller.controller_setup import make_executor, make_pose_servo, workspace
from dtvla.nodes.controller.safety_monitor import monotonic_tick

FRAME = "panda_link0"
numbers = st.floats(-2.0, 2.0)


def controller(**changes: object) -> Settings:
    return validate(CONTROLLER, {item.name: item.default for item in CONTROLLER} | changes)


@settings(deadline=None)  # the first message loads its libraries
@given(st.tuples(numbers, numbers, numbers), st.tuples(numbers, numbers, numbers))
def test_a_pose_comes_back_from_its_message(place: tuple[float, ...], turn: tuple[float, ...]) -> None:
    pose = Pose(np.array(place), exp_rotation(np.array(turn)))
    back = pose_from(pose_message(pose, 5, FRAME), FRAME)
    assert np.array_equal(back.position_m, pose.position_m)
    assert np.allclose(back.rotation, pose.rotation, atol=1e-9)


@pytest.mark.parametrize("length", [0.0, 0.9, 1.1, math.nan, math.inf])
def test_a_quaternion_that_is_no_rotation_is_refused(length: float) -> None:
    message = PoseStamped()
    message.header.frame_id = FRAME
    message.pose.orientation.w = length
    with pytest.raises(Refusal, match="length 1"):
        pose_from(message, FRAME)


@given(st.lists(st.integers(-400, 400), max_size=40))
def test_ticks_always_go_on_however_the_clock_steps(steps_ms: list[int]) -> None:
    now_ns, last = 10**18, None
    for step in steps_ms:
        tick = monotonic_tick(now_ns, last)
        assert last is None or tick > last
        now_ns, last = now_ns + step * 10**6 // 40, tick


def test_a_clock_that_was_set_back_far_is_followed() -> None:
    assert monotonic_tick(5 * NS_PER_S, 100 * NS_PER_S) == 5 * NS_PER_S


@pytest.mark.parametrize("robot", sorted(ROBOTS))
def test_the_defaults_with_a_robots_speeds_make_a_follower(robot: str) -> None:
    settings = controller(
        robot=robot,
        max_linear_velocity_m_s=0.25,
        max_angular_velocity_rad_s=0.5,
        joint_limits=False,
        lockstep=False,
    )
    assert not make_pose_servo(settings, make_executor(settings)).engaged


@pytest.mark.parametrize("robot", [PANDA, FR3])
def test_a_speed_above_the_arms_own_is_refused_with_its_figure(robot: RobotLimits) -> None:
    name = next(key for key, value in ROBOTS.items() if value is robot)
    settings = controller(robot=name, max_linear_velocity_m_s=robot.linear.velocity * 0.99)
    with pytest.raises(Refusal, match="'max_angular_velocity_rad_s' is 18 rad/s"):
        make_pose_servo(settings, make_executor(settings))


def test_a_workspace_turned_inside_out_is_refused() -> None:
    with pytest.raises(Refusal, match="'workspace_y_min_m' is 1"):
        workspace(controller(workspace_y_min_m=1.0))
