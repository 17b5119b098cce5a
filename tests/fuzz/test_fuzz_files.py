"""Files that people bring: records, replays, initial states, asset archives. Read as they are, or refused."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, fuzz, in_words, mutated, new_folder
from hypothesis import given
from hypothesis import strategies as st

from dtvla.errors import InputError
from dtvla.evaluation.policy_adapters import ReplayedActions
from dtvla.evaluation.results import (
    EpisodeResult,
    EvalOptions,
    begun_options,
    pack_actions,
    read_journal,
    read_summary,
    unpack_actions,
)
from dtvla.sim import assets
from dtvla.sim.bootstrap import SimulatorUnavailable
from dtvla.sim.suites.libero import read_arrays

EPISODE = EpisodeResult(
    task=0,
    task_name="pick_up_the_can",
    seed=1,
    success=True,
    steps=2,
    decisions=1,
    latency_p50_ms=80.0,
    target_within_3cm=1.0,
    phase_stated=1.0,
    thoughts=("The can is here.",),
    actions=pack_actions([np.zeros(7), np.ones(7)]),
)
HEAD = {
    "options": json.loads(json.dumps(asdict(EvalOptions("expert")))),
    "fingerprint": "",
    "assets": "none needed",
}
LINES = [HEAD, json.loads(json.dumps(asdict(EPISODE)))]


def record(lines: list[Any]) -> bytes:
    return "\n".join(json.dumps(line) for line in lines).encode() + b"\n"


records = st.one_of(
    mutated(LINES).map(lambda x: record(x if isinstance(x, list) else [x])), damaged(record(LINES))
)


@fuzz(150)
@given(content=records)
def test_a_record_is_read_as_episodes_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(content)
    found = in_words(lambda: read_journal(path), InputError)
    for episode in found[1] if found is not None else ():
        assert isinstance(episode.task, int)
        assert isinstance(episode.success, bool)
        json.dumps(asdict(episode))


@fuzz(150)
@given(content=records)
def test_an_evaluation_goes_on_from_its_record_or_says_why_not(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").write_bytes(content)
    options = in_words(lambda: begun_options(tmp_path), InputError)
    if options is not None:
        assert all(isinstance(task, int) for task in options.tasks)
        assert isinstance(options.episodes, int)


@fuzz(150)
@given(content=records)
def test_a_replay_holds_finite_actions_or_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(content)
    replay = in_words(lambda: ReplayedActions(path), InputError)
    for actions in replay._recorded.values() if replay is not None else ():
        assert actions.shape[1:] == (7,)
        assert np.isfinite(actions).all()


@fuzz(150)
@given(packed=st.one_of(st.text(max_size=40), st.binary(max_size=150).map(lambda b: pack_bytes(b))))
def test_packed_actions_are_unpacked_or_refused(packed: str) -> None:
    actions = in_words(lambda: unpack_actions(packed), InputError)
    if actions is not None:
        assert actions.shape[1:] == (7,)
        assert np.isfinite(actions).all()


@fuzz(100)
@given(content=damaged(json.dumps({**HEAD, "suite": "embedded", "results": [LINES[1]]}).encode()))
def test_a_summary_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    in_words(lambda: read_summary(path), InputError)


def pack_bytes(content: bytes) -> str:
    return base64.b64encode(content).decode()


def states(content: bytes) -> bytes:
    """A file as torch.save writes it, with a pickle of this content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return file.getvalue()


MATRIX = pickle.dumps(np.arange(12.0).reshape(3, 4), protocol=2)


class Evil:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@fuzz(300)
@given(content=st.one_of(damaged(MATRIX), st.binary(max_size=80)))
def test_initial_states_are_a_finite_matrix_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "task.pruned_init"
    path.write_bytes(states(content))
    _matrix_or_refused(path)


@fuzz(150)
@given(content=damaged(states(MATRIX)))
def test_a_damaged_file_of_initial_states_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "task.pruned_init"
    path.write_bytes(content)
    _matrix_or_refused(path)


def test_a_pickle_that_would_run_something_does_not(tmp_path: Path) -> None:
    path, trace = tmp_path / "task.pruned_init", tmp_path / "trace"
    path.write_bytes(states(pickle.dumps(Evil(trace), protocol=2)))
    with pytest.raises(ValueError, match="is not allowed in it"):
        read_arrays(path)
    assert not trace.exists()


def _matrix_or_refused(path: Path) -> None:
    matrix = in_words(lambda: read_arrays(path), InputError)
    if matrix is not None:
        assert matrix.ndim == 2
        assert np.isfinite(matrix).all()


@st.composite
def members(draw: st.DrawFn) -> tarfile.TarInfo:
    """One entry of an archive: files, folders, links and devices, some of them outside."""
    name = draw(
        st.sampled_from(
            ["a", "b/c", "../out", "/abs", "a/../../out", "scenes", "link/x", "", "\udcff", "a" * 300]
        )
    )
    info = tarfile.TarInfo(name)
    kinds = [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
    ]
    info.type = draw(st.sampled_from(kinds))
    info.mode = draw(st.sampled_from([0o644, 0o755, 0o4755, 0]))
    info.linkname = draw(st.sampled_from(["a", "..", "../..", "/etc", "link", ""]))
    info.size = 3 if info.type == tarfile.REGTYPE else 0
    return info


@fuzz(100)
@given(entries=st.lists(members(), max_size=5), data=st.data())
def test_an_archive_writes_nothing_outside_its_folder(
    entries: list[tarfile.TarInfo], data: st.DataObject
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for info in entries:
            tar.addfile(info, io.BytesIO(b"abc") if info.size else None)
    content = file.getvalue()
    with new_folder() as place:
        (place / "pack.tar").write_bytes(data.draw(damaged(content)) if data.draw(st.booleans()) else content)
        folder = place / "cache" / "all"
        folder.mkdir(parents=True)
        in_words(lambda: assets._unpack(place / "pack.tar", folder, lambda share: None), SimulatorUnavailable)
        assert {path.name for path in place.iterdir()} == {"pack.tar", "cache"}
        assert {path.name for path in folder.parent.iterdir()} == {"all"}
        for path in folder.rglob("*"):
            assert Path(os.path.realpath(path)).is_relative_to(folder.resolve())
            assert path.is_symlink() or path.is_file() or path.is_dir()


@fuzz(60)
@given(content=st.one_of(damaged(b'{"origin": "hub", "source": "x", "digest": "y"}'), st.binary(max_size=60)))
def test_assets_with_a_damaged_record_are_stand_ins(content: bytes, tmp_path: Path) -> None:
    (tmp_path / assets.RECORD).write_bytes(content)
    assert in_words(lambda: assets.describe(tmp_path), SimulatorUnavailable).origin == assets.STAND_IN
