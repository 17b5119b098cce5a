"""The recorder goes on where it was interrupted, and a worker that dies costs it one episode."""

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dtvla.evaluation.work_queue import Pair
from dtvla.sim.suites.embedded import SUITES
from training import collect
from training.collect import Collect, main, save_episode


def test_episodes_that_are_there_or_that_the_expert_failed_are_not_played_again(
    tmp_path: Path, capsys
) -> None:
    """Were one played, its file would appear."""
    first, second, third = (task.name for task in SUITES["embedded"].tasks)
    there = [tmp_path / f"{first}_100000.npz", tmp_path / f"{third}_100002.npz"]
    for path in (*there, tmp_path / f"{second}_100001.failed"):
        path.touch()
    main(Collect(out=tmp_path, episodes=1, workers=1))
    assert "2 episodes" in capsys.readouterr().out
    assert sorted(tmp_path.glob("*.npz")) == sorted(there)


def _mortal(config: Collect, pairs: Iterable[Pair]) -> Iterator[bool]:
    """Records nothing real: dies of one episode the first time, fails another, and makes the rest."""
    for pair in pairs:
        file = collect._file(config, pair)
        if pair[1] == 100_001 and not (config.out / "died").exists():
            (config.out / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if pair[1] == 100_002:
            collect._failed(file).touch()
        else:
            save_episode(file, {"seed": np.array(pair[1])})
        yield pair[1] != 100_002


def _deadly(config: Collect, pairs: Iterable[Pair]) -> Iterator[bool]:
    os._exit(7)
    yield


def _broken(config: Collect, pairs: Iterable[Pair]) -> Iterator[bool]:
    raise ValueError("There is no bundle.")
    yield


@pytest.mark.parametrize("block", [1, 10])
def test_a_worker_that_dies_costs_one_episode_and_the_same_command_records_it(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collect, "_record", _mortal)
    config = Collect(out=tmp_path, episodes=2, workers=2, block=block)
    with pytest.raises(SystemExit, match=r"Episodes lost with their workers: 1\. Run the same command again"):
        main(config)
    assert "4 episodes" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.npz"))) == 4
    main(config)
    assert "5 episodes" in capsys.readouterr().out
    seeds = sorted(int(np.load(path)["seed"]) for path in tmp_path.glob("*.npz"))
    assert seeds == [100_000, 100_001, 100_003, 100_004, 100_005]


def test_workers_that_all_die_or_cannot_begin_end_the_recording_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "_record", _deadly)
    with pytest.raises(SystemExit, match=r"3 recording workers ended one after the other.*status 7"):
        main(Collect(out=tmp_path, episodes=2, workers=1))
    monkeypatch.setattr(collect, "_record", _broken)
    with pytest.raises(SystemExit, match=r"There is no bundle\."):
        main(Collect(out=tmp_path, episodes=2, workers=1))
