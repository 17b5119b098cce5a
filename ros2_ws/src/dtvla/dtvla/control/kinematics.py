"""Where the end effector is, and how it moves when the joints do: Pinocchio behind one small class.

Pinocchio (`pin` on PyPI) is large and only needed for joint limits, so it is imported when an `Arm` is
made, and the rest of `dtvla.control` works without it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla.control.limits.motion import Pose
from dtvla.errors import DtvlaError

Vector = NDArray[np.float64]


class KinematicsUnavailable(DtvlaError, RuntimeError):
    """The robot model cannot be used on this machine; the message says what to do."""


def _pinocchio() -> Any:
    try:
        return importlib.import_module("pinocchio")
    except ImportError as error:
        raise KinematicsUnavailable(
            "Joint limits need the package 'pin' (Pinocchio), which is not installed or does not load "
            f"({error}). Install it with: pip install pin==4.1.0   Or switch the joint limits off."
        ) from error


def read_urdf(path: Path) -> str:
    """The URDF in a file; one that ends in .xacro is expanded with its default arguments.

    Raises:
        KinematicsUnavailable: the file is not there, or needs a xacro that is not.
    """
    if not path.is_file():
        raise KinematicsUnavailable(f"The robot model {path} does not exist. Give the path of a URDF.")
    if path.suffix != ".xacro":
        return path.read_text()
    try:
        xacro: Any = importlib.import_module("xacro")
    except ImportError as error:
        raise KinematicsUnavailable(
            f"The robot model {path.name} is a xacro, and the package 'xacro' is not installed. Install it "
            "(pip install xacro), or expand the file once: xacro in.urdf.xacro > out.urdf"
        ) from error
    return str(xacro.process_file(str(path)).toxml())


class Arm:
    """The joints between a base and a tip of a robot model. Other joints stay at their neutral position.

    One instance serves one thread: Pinocchio computes in place.

    Args:
        urdf: text of the model.
        tip: link whose pose is asked for.
        base: link in whose frame everything is expressed; it must not move.

    Raises:
        KinematicsUnavailable: Pinocchio is missing, or the model does not fit.
    """

    def __init__(self, urdf: str, *, tip: str = "panda_grip_site", base: str = "panda_link0") -> None:
        self._pin = pin = _pinocchio()
        try:
            model = pin.buildModelFromXML(urdf)
        except ValueError as error:
            raise KinematicsUnavailable(f"The robot model cannot be read as URDF: {error}") from error
        for link in (tip, base):
            if not model.existFrame(link):
                raise KinematicsUnavailable(f"The robot model {model.name!r} has no link {link!r}.")
        moving = set(model.supports[model.frames[model.getFrameId(tip)].parentJoint])
        others = [joint for joint in range(1, model.njoints) if joint not in moving]
        self._model = pin.buildReducedModel(model, others, pin.neutral(model))
        self._data = self._model.createData()
        self._tip = self._model.getFrameId(tip)
        frame = self._model.frames[self._model.getFrameId(base)]
        if frame.parentJoint != 0 or self._model.nq != self._model.nv:
            raise KinematicsUnavailable(
                f"Link {base!r} of {model.name!r} moves, or a joint turns without end; name a fixed base."
            )
        self._from_base = frame.placement.inverse()

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(self._model.names)[1:]

    @property
    def joint_count(self) -> int:
        return int(self._model.nv)

    def forward(self, positions: Vector) -> Pose:
        """Pose of the tip in the base frame, for joint positions [n] in rad."""
        self._pin.framesForwardKinematics(self._model, self._data, self._checked(positions))
        placement = self._from_base * self._data.oMf[self._tip]
        return Pose(np.array(placement.translation), np.array(placement.rotation))

    def jacobian(self, positions: Vector) -> Vector:
        """[6, n]: joint velocities (rad/s) to the tip's twist (m/s, rad/s) in the base frame."""
        reference = self._pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        jacobian = self._pin.computeFrameJacobian(
            self._model, self._data, self._checked(positions), self._tip, reference
        )
        turn = np.array(self._from_base.rotation)
        return np.vstack([turn @ jacobian[:3], turn @ jacobian[3:]])

    def _checked(self, positions: Vector) -> Vector:
        positions = np.asarray(positions, np.float64)
        if positions.shape != (self.joint_count,) or not np.isfinite(positions).all():
            raise ValueError(f"{self.joint_count} finite joint positions are needed, not {positions!r}.")
        return positions
