"""Everything in this folder starts real processes and talks to them over DDS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Probe, probe_domain


@pytest.fixture(scope="module")
def probe_and_domain() -> Iterator[tuple[Probe, int]]:
    with probe_domain() as pair:
        yield pair


@pytest.fixture(scope="module")
def probe(probe_and_domain: tuple[Probe, int]) -> Probe:
    return probe_and_domain[0]


@pytest.fixture(scope="module")
def domain(probe_and_domain: tuple[Probe, int]) -> int:
    return probe_and_domain[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One more try for tests over DDS on a crowded machine; pytest's last lines name each rerun."""
    for item in items:
        if "tests/ros/" in item.path.as_posix():
            item.add_marker(pytest.mark.flaky(reruns=1))
