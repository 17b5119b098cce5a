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
