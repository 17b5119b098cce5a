"""Names of the ways to execute chunks, for command lines and records (see `dtvla.control.chunk_executor`)."""

from __future__ import annotations

from typing import Literal

ChunkMode = Literal["open_loop", "receding", "ensembled"]
ChunkSeam = Literal["cut", "spline"]
