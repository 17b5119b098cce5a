"""A scripted expert: privileged pick-and-place by delta end-effector actions, with retries.

It looks at the state, not at a clock: pushed off course, or with the object lost, it goes back to the
phase that mends it. So its actions stay right as labels when somebody else (noise, a learner) drives.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from transforms3d import quaternions

from dtvla.sim.env import POSITION_SCALE_M, ROTATION_SCALE_RAD, Observation
from dtvla.sim.suites.embedded import EmbeddedTask

HOVER_M = 0.11  # above the grasp point while moving over the object
NEAR_M = 0.035  # the gripper is at the grasp point
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


@dataclass(frozen=True)
class PickAndPlacePlan:
    """One object to bring to one place. Lengths in metres; heights are the gripper's, above the place."""

    target: str  # the object, as in `Observation.objects`
    noun: str  # what a thought calls it
    place: str  # an object, or one of `Observation.regions`
    grasp: tuple[float, float, float]  # from the object's origin to where the fingers close, base frame
    opening: tuple[float, float]  # the fingers are further apart than this, and less, while they hold it
    slack: float = NEAR_M  # how far the grasp point may stray from the gripper while it is held
    carry: float = 0.26  # height while carrying
    drop: float = 0.15  # height at which the fingers open
    yaw: float = 0.0  # rad, turn of the gripper about the vertical away from its first orientation
    aim: bool = False  # bring the object over the place, wherever it hangs; else the gripper
    squeeze: int = 3  # steps for which the fingers close at least
    patience: int | None = None  # steps after which going down counts as blocked; None: never


def embedded_plan(task: EmbeddedTask) -> PickAndPlacePlan:
    """What a task of an embedded suite asks for."""
    opening = (0.6 * task.width_m, task.width_m + 0.006)
    return PickAndPlacePlan(
        task.target, task.noun, f"{task.into}_1", (0.0, 0.0, task.grasp_height_m), opening
    )


class Expert:
    """The expert for one job, or for the one of an embedded task."""

    def __init__(self, task: EmbeddedTask | PickAndPlacePlan) -> None:
        self.task = task if isinstance(task, PickAndPlacePlan) else embedded_plan(task)
        self.phase = Phase.REACH
        self._home_quaternion: NDArray[np.float64] | None = None
        self._ticks = 0

    def reset(self, obs: Observation) -> None:
        """Starts an episode: remembers the gripper's orientation, which it will hold."""
        self.phase = Phase.REACH
        self._ticks = 0
        self._home_quaternion = np.array(obs.ee_quaternion)
        if self.task.yaw:
            turn = quaternions.axangle2quat((0.0, 0.0, 1.0), self.task.yaw)
            home = np.roll(self._home_quaternion, 1)  # wxyz
            self._home_quaternion = np.roll(quaternions.qmult(turn, home), -1)

    def grasp_point(self, obs: Observation) -> NDArray[np.float64]:
        """Where the gripper must be to grasp the target: metres, base frame."""
        offset: NDArray[np.float64] = np.array(self.task.grasp)
        return obs.objects[self.task.target] + offset

    def holds(self, obs: Observation) -> bool:
        """True while the target is between fingers that have closed on it."""
        slack = NEAR_M if self.phase in BEFORE_LIFT else self.task.slack
        near = np.linalg.norm(self.grasp_point(obs) - obs.ee_position) < slack
        least, most = self.task.opening
        return bool(near and least < obs.gripper_opening_m < most)

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

    def _place(self, obs: Observation) -> NDArray[np.float64]:
        """Where the gripper is when the object is over the place; as high as the place's origin."""
        name, (x, y, _) = self.task.place, self.task.grasp
        if self.task.aim and self.phase in (Phase.CARRY, Phase.PLACE):
            x, y, _ = obs.ee_position - obs.objects[self.task.target]
        origin = obs.objects[name] if name in obs.objects else obs.regions[name]
        offset: NDArray[np.float64] = np.array([x, y, 0.0])
        return origin + offset

    def _blocked(self) -> bool:
        return self.task.patience is not None and self._ticks > self.task.patience

    def _next_phase(self, obs: Observation) -> Phase:
        hand, grasp, phase = obs.ee_position, self.grasp_point(obs), self.phase
        offset = np.linalg.norm((grasp - hand)[:2])
        holding = self.holds(obs)
        if phase in (Phase.LIFT, Phase.CARRY, Phase.PLACE) and not holding:
            return Phase.REACH  # dropped it: start again
        if phase in (Phase.REACH, Phase.LOWER) and holding:
            return Phase.LIFT  # somebody else drove, and closed the gripper well
        place = self._place(obs)
        over = np.linalg.norm((place - hand)[:2])
        match phase:
            case Phase.REACH:
                return Phase.LOWER if offset < 0.010 else phase
            case Phase.LOWER:
                if offset > 0.030 or self._blocked():
                    return Phase.REACH
                return Phase.GRASP if offset < 0.010 and abs(grasp[2] - hand[2]) < 0.010 else phase
            case Phase.GRASP:
                if holding and self._ticks >= self.task.squeeze:
                    return Phase.LIFT
                return Phase.REACH if offset > 0.035 or self._ticks > 20 else phase
            case Phase.LIFT:
                return Phase.CARRY if hand[2] > place[2] + self.task.carry - 0.04 else phase
            case Phase.CARRY:
                return Phase.PLACE if over < 0.020 else phase
            case Phase.PLACE:
                low = hand[2] < place[2] + self.task.drop + 0.015
                return Phase.RELEASE if low or self._blocked() else phase
            case _:
                return Phase.REACH if self._ticks > 25 else phase

    def _goal(self, obs: Observation) -> tuple[NDArray[np.float64], float]:
        """Goal position of the gripper (metres, base frame) and gripper command (-1 open, +1 close)."""
        hand, grasp, place = obs.ee_position, self.grasp_point(obs), self._place(obs)
        carry_z = place[2] + self.task.carry
        drop_z = place[2] + self.task.drop
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
                return np.array([place[0], place[1], carry_z]), 1.0
            case Phase.PLACE:
                return np.array([place[0], place[1], drop_z]), 1.0
            case _:
                return np.array([place[0], place[1], drop_z + 0.03]), -1.0

    def _rotation_error(self, obs: Observation) -> NDArray[np.float64]:
        """Axis-angle (rad, base frame) that turns the gripper back to its first orientation."""
        assert self._home_quaternion is not None
        wanted, now = (np.roll(q, 1) for q in (self._home_quaternion, obs.ee_quaternion))  # wxyz
        axis, angle = quaternions.quat2axangle(quaternions.qmult(wanted, quaternions.qinverse(now)))
        angle = (angle + np.pi) % (2 * np.pi) - np.pi
        return np.asarray(axis * angle)
