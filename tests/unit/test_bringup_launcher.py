"""Domains and leftovers: what the launcher takes and what it leaves."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtvla.bringup import domains, shared_memory


def test_a_reserved_domain_is_not_given_twice() -> None:
    with domains.reserve() as first:
        with pytest.raises(domains.DomainBusy, match="--join"):
            domains.reserve(first.domain)
        with domains.reserve(first.domain, join=True) as shared:
            assert shared.domain == first.domain
    with domains.reserve(first.domain):
        pass


def test_a_domain_with_a_bound_port_is_busy() -> None:
    with domains.reserve() as free:
        domain = free.domain
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
        participant.bind(("127.0.0.1", domains.FIRST_PORT + domains.PORTS_PER_DOMAIN * domain + 10))
        assert domains.is_busy(domain)
        with pytest.raises(domains.DomainBusy, match=f"domain {domain} is in use"):
            domains.reserve(domain)
    assert not domains.is_busy(domain)


@pytest.mark.parametrize("domain", [-1, 102, 5000])
def test_an_impossible_domain_is_refused_in_words(domain: int) -> None:
    with pytest.raises(ValueError, match=f"domain {domain} does not exist"):
        domains.reserve(domain)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("fastdds_0123456789abcdef", "fastdds_0123456789abcdef"),
        ("fastdds_0123456789abcdef_el", "fastdds_0123456789abcdef"),
        ("fastdds_port7413_sl", "fastdds_port7413"),
        ("sem.fastdds_port7413_mutex", "fastdds_port7413"),
        ("sem.mp-abc", None),
        ("somebody_else", None),
    ],
)
def test_files_that_belong_together_share_a_stem(name: str, stem: str | None) -> None:
    assert shared_memory.stem_of(name) == stem


def test_a_sweep_takes_dead_files_of_our_run_and_nothing_else(tmp_path: Path) -> None:
    before = time.time() - 10.0
    dead = [tmp_path / "fastdds_00000000dead", tmp_path / "fastdds_00000000dead_el"]
    dead.append(tmp_path / "sem.fastdds_port7777_mutex")
    alive, opened, stranger = (tmp_path / n for n in ("fastdds_0000a11e", "fastdds_00000be1", "sem.mp-x"))
    for path in (*dead, alive, opened, stranger):
        path.write_bytes(b"x" * mmap.PAGESIZE)
    with alive.open("r+b") as handle:
        mapped = mmap.mmap(handle.fileno(), mmap.PAGESIZE)
    sweep = "import pathlib, dtvla.bringup.shared_memory as x; "
    sweep += f"x.sweep({before}, shm=pathlib.Path({str(tmp_path)!r}))"
    with mapped, opened.open("rb"):
        subprocess.run([sys.executable, "-c", sweep], check=True)
        assert not any(path.exists() for path in dead)
        assert alive.exists()
        assert opened.exists()
    assert stranger.exists()
    assert (
        shared_memory.sweep(time.time() + 10.0, shm=tmp_path) == []
    )  # older than our run: not ours to judge
    assert shared_memory.sweep(0.0, before, shm=tmp_path) == []  # younger than what we asked for
    with opened.open("rb"):
        # A bug found on an idle machine: the launcher's own stale mapping of a dead node kept its files.
        assert sorted(shared_memory.sweep(before, shm=tmp_path)) == sorted([alive, opened])


def test_stems_in_use_finds_the_files_of_this_process(tmp_path: Path) -> None:
    path = tmp_path / "fastdds_000000ff"
    path.write_bytes(b"x")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert "fastdds_000000ff" in shared_memory.stems_in_use(shm=tmp_path)
    finally:
        os.close(descriptor)
    assert "fastdds_000000ff" not in shared_memory.stems_in_use(shm=tmp_path)


def test_a_process_that_stays_in_the_graph_keeps_what_it_has_mapped(tmp_path: Path) -> None:
    """A dead node's port was removed under the launcher, and its successor never heard a request."""
    path = tmp_path / "fastdds_port7411"
    path.write_bytes(b"\0" * 4096)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert shared_memory.sweep(0.0, shm=tmp_path, stays=True) == []
        assert path.exists()
        assert shared_memory.sweep(0.0, shm=tmp_path) == [path]
