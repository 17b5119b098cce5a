"""The simulated arm behind target poses: what a Cartesian impedance controller does on a real one.

LIBERO's controller (robosuite OSC_POSE) pulls the arm with a critically damped spring (stiffness 150 per unit
of mass) towards `measured pose + delta`. Told the way to a target as its delta, it is just such an arm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from transforms3d.quaternions import quat2mat

from dtvla.control.limits.motion import Pose
from dtvla.control.rotations import log_rotation
from dtvla.sim.env import Observation, raw_action

# The spring is made so much stiffer, or a target that moves at 0.2 m/s would be followed 3 cm behind.
STIFFNESS = 2.0


def following_action(obs: Observation, target: Pose, opening_m: float) -> NDArray[np.float64]:
    """The raw action [7] that draws the arm to `target` (base frame) with the gripper at `opening_m`."""
    x, y, z, w = obs.ee_quaternion
    way = target.position_m - obs.ee_position
    turn = log_rotation(target.rotation @ np.asarray(quat2mat([w, x, y, z])).T)
    return raw_action((STIFFNESS * way).tolist(), (STIFFNESS * turn).tolist(), opening_m)
