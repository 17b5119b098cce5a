"""The recorder goes on where it was interrupted."""

from pathlib import Path

from dtvla.sim.suites.embedded import SUITES
from training.collect import Collect, main


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
