"""Fixtures that several test folders share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).resolve().parents[2] / "shared/libero_assets.tar.xz"


@pytest.fixture(scope="session")
def random_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle of a tiny policy with random weights. Never change it: copy it."""
    from model_export import random_bundle  # imports torch: only for the tests that need it

    return random_bundle(tmp_path_factory.mktemp("bundles") / "random")


def reseal(bundle: Path, data: dict[str, Any]) -> None:
    """Writes policy.json with a seal that fits, whatever it says: what an attacker can do as well."""
    blank = json.dumps({**data, "sha256": "0" * 64})
    head, _, tail = blank.rpartition("0" * 64)
    (bundle / "policy.json").write_text(head + hashlib.sha256(blank.encode()).hexdigest() + tail)


@pytest.fixture(name="reseal")
def _reseal() -> Any:
    return reseal


@pytest.fixture(scope="session")
def libero_assets() -> str:
    """Where LIBERO's assets are: as a user would have them, else the stand-in pack beside the repository."""
    from dtvla.sim import assets
    from dtvla.sim.bootstrap import SimulatorUnavailable

    try:
        return str(assets.find())
    except SimulatorUnavailable:
        if PACK.is_file():
            return str(PACK)
    pytest.skip("LIBERO's assets are not here: `.venv/bin/dtvla assets fetch` gets them")
