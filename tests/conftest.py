"""Fixtures that several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def random_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle of a tiny policy with random weights. Never change it: copy it."""
    from model_export import random_bundle  # imports torch: only for the tests that need it

    return random_bundle(tmp_path_factory.mktemp("bundles") / "random")
