"""Shared-memory files that a killed DDS process leaves behind in /dev/shm.

Fast DDS removes its own on a clean end; after SIGKILL nobody does. A file is swept only when it is
ours, young enough to be from our run, and no living process has it open, mapped or locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

SHM = Path("/dev/shm")
_STEM = re.compile(r"^(?:sem\.)?(fastdds_[0-9a-z]+?)(?:_el|_sl|_mutex)?$")


def stem_of(name: str) -> str | None:
    """What belongs together: `fastdds_port7413` for `sem.fastdds_port7413_mutex`; None for other files."""
    found = _STEM.match(name)
    return found[1] if found else None


def stems_in_use(proc: Path = Path("/proc"), shm: Path = SHM, *, excluding: int | None = None) -> set[str]:
    """The stems of all files below `shm` that a living process (but the one named) has mapped or open."""
    used: set[str] = set()
    pattern = re.compile(re.escape(str(shm)) + r"/(\S+)")
    for process in proc.glob("[0-9]*"):
        if process.name == str(excluding):
            continue
        for text in _texts(process):
            used.update(stem for name in pattern.findall(text) if (stem := stem_of(name)))
    return used


def _texts(process: Path) -> Iterator[str]:
    """The memory map of a process, and what its descriptors point to; what has gone meanwhile is left out."""
    with contextlib.suppress(OSError):
        yield (process / "maps").read_text()
    try:
        links = list((process / "fd").iterdir())
    except OSError:  # the process ended, or belongs to somebody else
        return
    for link in links:
        with contextlib.suppress(OSError):
            yield os.readlink(link)


def sweep(since_s: float, until_s: float = math.inf, *, shm: Path = SHM, stays: bool = False) -> list[Path]:
    """Removes our unused Fast DDS files that were made between two Unix times; returns them.

    Args:
        since_s, until_s: when they were made.
        shm: where they are.
        stays: this process stays in the graph. What it has mapped of a dead peer is kept then: the peer's
            successor may take the same port, and what we would send to it went into the removed file.
    """
    if not shm.is_dir():
        return []
    groups: dict[str, list[Path]] = {}
    for path in shm.iterdir():
        stem = stem_of(path.name)
        if stem is not None:
            groups.setdefault(stem, []).append(path)
    # A process that has left keeps what it had mapped of a dead peer; what it still uses itself is locked.
    used = stems_in_use(shm=shm, excluding=None if stays else os.getpid())
    gone = []
    for stem, paths in groups.items():
        if stem in used or not _all_ours(paths, since_s, until_s) or _locked(shm / f"{stem}_el"):
            continue
        for path in paths:
            path.unlink(missing_ok=True)
            gone.append(path)
    return gone


def _all_ours(paths: Iterable[Path], since_s: float, until_s: float) -> bool:
    try:
        states = [path.stat() for path in paths]
    except FileNotFoundError:
        return False
    return all(state.st_uid == os.getuid() and since_s <= state.st_ctime <= until_s for state in states)


def _locked(path: Path) -> bool:
    """Whether a process holds Fast DDS's lock on this file (also one whose /proc entry we may not read)."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
