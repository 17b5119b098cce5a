"""LIBERO's own suites as hf-libero ships them: task lists, sentences, BDDL files, fixed initial states.

Nothing here imports `libero`: its benchmark module would pull torch. Step limits and the rule "trial i
starts from initial state i" are those of the reference evaluation (wadeKeith/DeepThinkVLA,
experiments/run_libero_eval.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import pickle
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError, plain
from dtvla.sim.bootstrap import SimulatorUnavailable, libero_package

# Control periods per episode, without the settling steps. The reference counts 620 for libero_10 where
# OpenVLA's script stops at 520; the others agree.
MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 620}

MAX_STATES_BYTES = 1 << 26  # unpacked; the benchmark's largest file has 0.1 MB


@lru_cache(maxsize=1)
def _task_map() -> dict[str, list[str]]:
    """All tasks by suite, read from the one file of `libero.benchmark` that is plain data."""
    path = libero_package() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("dtvla_libero_task_map", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SimulatorUnavailable(f"{path} is missing; install hf-libero again: `make setup`.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks: dict[str, list[str]] = module.libero_task_map
    return tasks


def task_names(suite: str) -> list[str]:
    """Names of a suite's ten tasks in the benchmark's order."""
    return list(_task_map()[suite])


def language(name: str) -> str:
    """The instruction that the benchmark gives with a task: its file name without the scene.

    `KITCHEN_SCENE3_turn_on_the_stove` becomes `turn on the stove`.
    """
    words = name.split("_")
    scenes = [i for i, word in enumerate(words) if word.startswith("SCENE") and word[5:].isdigit()]
    return " ".join(words[scenes[0] + 1 :] if scenes else words)


def bddl_file(suite: str, name: str) -> Path:
    """The file that describes a task: objects, regions, initial placement, goal."""
    return libero_package() / "bddl_files" / suite / f"{name}.bddl"


@lru_cache(maxsize=8)
def init_states(suite: str, name: str) -> NDArray[np.float64]:
    """The task's fixed initial states [N, 1 + nq + nv]: time, positions, velocities of the whole scene."""
    return read_arrays(libero_package() / "init_files" / suite / f"{name}.pruned_init")


def read_arrays(path: Path) -> NDArray[np.float64]:
    """Reads one float64 matrix that `torch.save` wrote, without torch and without running its code.

    Raises:
        InputError: the file holds anything but one matrix of finite numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(entry).file_size > MAX_STATES_BYTES:
                raise InputError(f"it would take more than {MAX_STATES_BYTES} bytes of memory")
            value = _ArraysOnly(io.BytesIO(archive.read(entry))).load()
    except FileNotFoundError:
        raise InputError(f"The initial states {path} do not exist; install hf-libero again.") from None
    except Exception as error:  # a damaged archive or pickle raises many kinds
        raise InputError(
            f"{path} is not a file of initial states ({type(error).__name__}: {plain(error)})."
        ) from error
    if not isinstance(value, np.ndarray) or value.dtype != np.float64 or value.ndim != 2:
        raise InputError(f"{path} holds no matrix of float64 but {type(value).__name__}.")
    if not np.isfinite(value).all():
        raise InputError(f"{path} holds numbers that are not finite.")
    return value


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes as pickle protocol 2 wraps them; stands in for `_codecs.encode`, which knows more codecs."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed in it.")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and nothing else: any other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 1 wrote these files; numpy 2 has moved the function.
        if (module, name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ):
            return importlib.import_module("numpy._core.multiarray")._reconstruct
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it, only arrays are.")
