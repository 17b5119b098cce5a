"""Limits as pure functions and small state machines: Cartesian, jerk, joints, gripper."""
