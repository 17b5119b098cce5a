"""A scripted expert: privileged pick-and-place by delta end-effector actions, with retries.

It looks at the state, not at a clock: pushed off course, or with the object lost, it goes back to the
phase that mends it. So its actions stay right as labels when somebody else (noise, a learner) drives.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray
from transforms3d import quaternions

from dtvla.sim.embedded import BASKET, EmbeddedTask
from dtvla.sim.env import POSITION_SCALE_M, ROTATION_SCALE_RAD, Observation

HOVER_M = 0.11  # above the grasp point while moving over the object
CARRY_Z_M = 0.26  # height of the gripper above the table while carrying
DROP_M = 0.15  # gripper above the basket's floor when it opens
GAIN = 0.6  # share of the position error that one step asks for
ROTATION_GAIN = 0.2


class Phase(Enum):
    """What the expert is doing; the value is the word the thought uses."""

    REACH = "reach"
    LOWER = "lower"
    GRASP = "grasp"
    LIFT = "lift"
    CARRY = "carry"
    PLACE = "place"
    RELEASE = "release"


BEFORE_LIFT = (Phase.REACH, Phase.LOWER, Phase.GRASP)


class Expert:
    """The expert for one task of the embedded suite."""

    def __init__(self, task: EmbeddedTask) -> None:
        self.task = task
        self.phase = Phase.REACH
        self._home_quaternion: NDArray[np.float64] | None = None
        self._ticks = 0

    def reset(self, obs: Observation) -> None:
        """Starts an episode: remembers the gripper's orientation, which it will hold."""
        self.phase = Phase.REACH
        self._ticks = 0
        self._home_quaternion = np.array(obs.ee_quaternion)

    def grasp_point(self, obs: Observation) -> NDArray[np.float64]:
        """Where the gripper must be to grasp the target: metres, base frame."""
        return obs.objects[self.task.target] + [0.0, 0.0, self.task.grasp_height_m]

    def holds(self, obs: Observation) -> bool:
        """True while the target is between fingers that have closed on it."""
        near = np.linalg.norm(self.grasp_point(obs) - obs.ee_position) < 0.035
        return bool(near and 0.6 * self.task.width_m < obs.gripper_opening_m < self.task.width_m + 0.006)

    def act(self, obs: Observation) -> NDArray[np.float64]:
        """The expert's action [7] in [-1, 1] for this observation; advances its phase first."""
        if self._home_quaternion is None:
            self.reset(obs)
        before = self.phase
        self.phase = self._next_phase(obs)
        self._ticks = 0 if self.phase is not before else self._ticks + 1
        goal, gripper = self._goal(obs)
        action = np.zeros(7)
        action[:3] = GAIN * (goal - obs.ee_position) / POSITION_SCALE_M
        action[3:6] = ROTATION_GAIN * self._rotation_error(obs) / ROTATION_SCALE_RAD
        action[6] = gripper
        return np.clip(action, -1.0, 1.0)

    def _basket(self, obs: Observation) -> NDArray[np.float64]:
        return obs.objects[f"{BASKET}_1"]

    def _table_z(self, obs: Observation) -> float:
        return float(self._basket(obs)[2])  # the basket's origin is its floor on the table

    def _next_phase(self, obs: Observation) -> Phase:
        hand, grasp, phase = obs.ee_position, self.grasp_point(obs), self.phase
        offset = np.linalg.norm((grasp - hand)[:2])
        holding = self.holds(obs)
        if phase in (Phase.LIFT, Phase.CARRY, Phase.PLACE) and not holding:
            return Phase.REACH  # dropped it: start again
        if phase in (Phase.REACH, Phase.LOWER) and holding:
            return Phase.LIFT  # somebody else drove, and closed the gripper well
        over = np.linalg.norm((self._basket(obs) - hand)[:2])
        match phase:
            case Phase.REACH:
                return Phase.LOWER if offset < 0.010 else phase
            case Phase.LOWER:
                if offset > 0.030:
                    return Phase.REACH
                return Phase.GRASP if offset < 0.010 and abs(grasp[2] - hand[2]) < 0.010 else phase
            case Phase.GRASP:
                if holding and self._ticks >= 3:
                    return Phase.LIFT
                return Phase.REACH if offset > 0.035 or self._ticks > 20 else phase
            case Phase.LIFT:
                return Phase.CARRY if hand[2] > self._table_z(obs) + CARRY_Z_M - 0.04 else phase
            case Phase.CARRY:
                return Phase.PLACE if over < 0.020 else phase
            case Phase.PLACE:
                low = hand[2] < self._table_z(obs) + DROP_M + 0.015
                return Phase.RELEASE if low else phase
            case _:
                return Phase.REACH if self._ticks > 25 else phase

    def _goal(self, obs: Observation) -> tuple[NDArray[np.float64], float]:
        """Goal position of the gripper (metres, base frame) and gripper command (-1 open, +1 close)."""
        hand, grasp, basket = obs.ee_position, self.grasp_point(obs), self._basket(obs)
        carry_z = self._table_z(obs) + CARRY_Z_M
        match self.phase:
            case Phase.REACH:
                goal = grasp + np.array([0.0, 0.0, HOVER_M])
                if np.linalg.norm((goal - hand)[:2]) > 0.06:  # do not sweep objects off the table
                    goal[2] = max(goal[2], min(hand[2], carry_z))
                return goal, -1.0
            case Phase.LOWER:
                return grasp, -1.0
            case Phase.GRASP:
                return grasp, 1.0
            case Phase.LIFT:
                return np.array([hand[0], hand[1], carry_z + 0.02]), 1.0
            case Phase.CARRY:
                return np.array([basket[0], basket[1], carry_z]), 1.0
            case Phase.PLACE:
                return np.array([basket[0], basket[1], self._table_z(obs) + DROP_M]), 1.0
            case _:
                return np.array([basket[0], basket[1], self._table_z(obs) + DROP_M + 0.03]), -1.0

    def _rotation_error(self, obs: Observation) -> NDArray[np.float64]:
        """Axis-angle (rad, base frame) that turns the gripper back to its first orientation."""
        assert self._home_quaternion is not None
        wanted, now = (np.roll(q, 1) for q in (self._home_quaternion, obs.ee_quaternion))  # wxyz
        axis, angle = quaternions.quat2axangle(quaternions.qmult(wanted, quaternions.qinverse(now)))
        angle = (angle + np.pi) % (2 * np.pi) - np.pi
        return np.asarray(axis * angle)
