"""Names that command lines, parameters and records share. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

# See `dtvla.control.chunk_executor`.
ChunkMode = Literal["open_loop", "receding", "ensembled"]
ChunkSeam = Literal["cut", "spline"]

# Whose limits hold. The simulator takes the benchmark's own deltas; the others are `dtvla.control.robots`.
RobotName = Literal["simulator", "panda", "fr3"]
ROBOT_NAMES: tuple[RobotName, ...] = get_args(RobotName)
SIMULATOR: RobotName = "simulator"
ARM_NAMES = tuple(name for name in ROBOT_NAMES if name != SIMULATOR)
