"""Makes LIBERO importable without a hub, a prompt or torch, and picks a GL that works.

Import order matters: `prepare()` must run before anything imports `libero` or `robosuite`.
Facts behind every step: LIBERO reads a YAML file at import time and calls `input()` when it is
missing; its asset lookup downloads from the hub unless the cached path is set first; robosuite
picks its GL platform from the environment when its renderer is imported.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from dtvla.errors import DtvlaError

GL_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"


class SimulatorUnavailable(DtvlaError, RuntimeError):
    """The simulator cannot run on this machine; the message says what to install."""


def choose_gl() -> str:
    """Returns the MuJoCo GL backend to use: `egl`, or `osmesa` when there is no EGL.

    A value the user set in `MUJOCO_GL` wins.

    Raises:
        SimulatorUnavailable: neither library can be loaded.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted:
        return wanted
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        path = ctypes.util.find_library(library)
        if not path:
            continue
        try:
            ctypes.CDLL(path)
        except OSError:
            continue
        return name
    raise SimulatorUnavailable(
        "No software or hardware GL was found, so the cameras of the simulator cannot render. "
        f"Install one with: sudo apt-get install -y {GL_PACKAGES}   (or libosmesa6)"
    )


def libero_package() -> Path:
    """The folder `libero/libero` of the hf-libero wheel (found without importing it).

    Raises:
        SimulatorUnavailable: the package is not installed.
    """
    package = importlib.util.find_spec("libero")
    if package is None or not package.submodule_search_locations:
        raise SimulatorUnavailable(
            "The package hf-libero is not installed. Run `make setup`, which installs it without its "
            "torch dependencies."
        )
    return Path(next(iter(package.submodule_search_locations))) / "libero"


def _config_folder() -> Path:
    """A folder with LIBERO's config.yaml, written once for the installed package."""
    root = libero_package()
    folder = cache_folder() / "libero"
    folder.mkdir(parents=True, exist_ok=True)
    lines = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": folder / "datasets",
        "assets": folder / "assets",
    }
    write_atomically(folder / "config.yaml", "".join(f"{key}: {path}\n" for key, path in lines.items()))
    return folder


def robosuite_assets() -> Path:
    """The asset folder of the robosuite wheel (found without importing it)."""
    spec = importlib.util.find_spec("robosuite")
    if spec is None or not spec.submodule_search_locations:
        raise SimulatorUnavailable("The package robosuite is not installed. Run `make setup`.")
    return Path(next(iter(spec.submodule_search_locations))) / "models" / "assets"


def cache_folder() -> Path:
    """Where generated scenes and LIBERO's configuration live (`DTVLA_CACHE` or ~/.cache/dtvla)."""
    base = os.environ.get("DTVLA_CACHE")
    return Path(base) if base else Path.home() / ".cache" / "dtvla"


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that a concurrent reader sees the old file or the new one, never half of it."""
    if path.is_file() and path.read_text() == text:
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as handle:
        handle.write(text)
    os.replace(handle.name, path)


def prepare(assets: Path) -> None:
    """Readies `libero.libero` to read its assets from `assets`.

    Safe to call again with the same folder; a process serves one asset folder at a time.
    """
    os.environ["MUJOCO_GL"] = choose_gl()
    libero = import_libero()
    libero._assets_path_cache = str(assets)  # else the first environment asks the hub


def import_libero() -> Any:
    """The module `libero.libero`, imported so that it neither asks for input nor logs noise."""
    os.environ["LIBERO_CONFIG_PATH"] = str(_config_folder())
    for name in ("robosuite_logs", "robosuite"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return importlib.import_module("libero.libero")
