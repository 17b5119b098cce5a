"""Finds the files that travel with the package: bundles, launch files, the URDF."""

from __future__ import annotations

from pathlib import Path

from dtvla.errors import DtvlaError

PACKAGE_ROOT = Path(__file__).resolve().parents[1]


class ResourceMissing(DtvlaError, FileNotFoundError):
    """A file that is installed with dtvla is not there; the message says where it was looked for."""


def resource(name: str) -> Path:
    """Returns the path of an installed file or folder, for example `bundles/embedded` or `launch`.

    Looks beside the source first (`pip install -e`, colcon --symlink-install), then in the
    `share/dtvla` of the install prefix this package lies in.

    Raises:
        ResourceMissing: it is in neither place.
    """
    if (PACKAGE_ROOT / "package.xml").is_file():  # running from the source tree
        folders = [PACKAGE_ROOT, PACKAGE_ROOT.parents[2]]  # launch/ and urdf/ live at the repository's top
    else:
        folders = [prefix / "share" / "dtvla" for prefix in PACKAGE_ROOT.parents]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise ResourceMissing(
        f"The file {name!r} that belongs to dtvla was not found beside {PACKAGE_ROOT} nor in a share/dtvla "
        "folder above it. Install the package again: `make setup`, or `colcon build` in ros2_ws."
    )


def default_bundle() -> Path:
    """The bundle that ships with the package: int8; `bundles/embedded` beside it is what it was made of."""
    return resource("bundles/embedded-int8")
