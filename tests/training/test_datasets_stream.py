"""Order, shards and resuming of the stream of training rows."""

from __future__ import annotations

import json
import weakref
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dataset_samples import change_column, episode, write
from hypothesis import given, settings
from hypothesis import strategies as st

from training.datasets.episode import Episode
from training.datasets.errors import DatasetError
from training.datasets.lerobot.layout import V21, V30
from training.datasets.lerobot.reading import DatasetReader
from training.datasets.lerobot.stream import RowStream


class MadeUpReader:
    """A reader of episodes that are made when they are read; some are broken."""

    folder, cameras = Path("made_up"), ("top",)

    def __init__(self, lengths, broken=()):
        entries = tuple(SimpleNamespace(index=100 + i, length=n) for i, n in enumerate(lengths))
        self.layout = SimpleNamespace(version=V30, episodes=entries)
        self.broken, self._pictures = set(broken), []

    def __len__(self):
        return len(self.layout.episodes)

    def read(self, position):
        if position in self.broken:
            raise DatasetError(f"made_up, episode {position + 100}: 'action' holds NaN")
        frames = self.layout.episodes[position].length
        actions = np.arange(frames, dtype=np.float32)[:, None] + 1000 * position
        images = np.full((frames, 1, 1, 1, 3), position, np.uint8)
        made = Episode(f"{position}", images, actions, ("go",) * frames, ("on",) * frames)
        self._pictures.append(weakref.ref(images))
        return made

    def in_memory(self):
        return sum(pictures() is not None for pictures in self._pictures)


def places(rows):
    return [(row.episode, row.frame) for row in rows]


datasets = st.lists(st.integers(1, 9), min_size=4, max_size=12)


@settings(deadline=None, max_examples=40)
@given(
    lengths=datasets,
    seed=st.integers(0, 99),
    world=st.integers(1, 4),
    window=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_all_ranks_together_see_every_row_once(lengths, seed, world, window, epoch):
    seen, counts = [], []
    for rank in range(world):
        stream = RowStream(
            MadeUpReader(lengths), 2, seed=seed, window=window, rank=rank, world=world, epoch=epoch
        )
        expected = stream.rows_per_rank()
        rows = places(stream)
        counts.append(len(rows))
        seen += rows
    assert sorted(seen) == [(100 + i, t) for i, n in enumerate(lengths) for t in range(n)]
    assert counts == expected
    assert max(counts) - min(counts) <= max(lengths)


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    lengths=datasets,
    seed=st.integers(0, 99),
    world=st.integers(1, 3),
    window=st.integers(1, 5),
)
def test_a_resumed_stream_gives_the_rows_that_were_left(data, lengths, seed, world, window):
    broken = data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=2))
    options = {"seed": seed, "window": window, "rank": data.draw(st.integers(0, world - 1)), "world": world}

    def new():
        return RowStream(MadeUpReader(lengths, broken), 3, **options)

    total = sum(new().rows_per_rank()) + max(lengths)  # into the next epoch
    stop = data.draw(st.integers(0, total))
    try:
        whole = list(islice(new().forever(), total))
    except DatasetError:  # this rank has broken episodes only, which another test is about
        return
    first = new()
    taken = list(islice(first.forever(), stop))
    second = new()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = list(islice(second.forever(), total - stop))
    assert places(taken) + places(rest) == places(whole)
    for before, after in zip(whole[stop:], rest, strict=True):
        assert np.array_equal(before.actions, after.actions)
        assert np.array_equal(before.images, after.images)


def test_the_order_is_that_of_seed_and_epoch():
    def order(**options):
        return places(RowStream(MadeUpReader([5] * 8), 1, **options))

    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)
    assert order(seed=1) != order(seed=1, epoch=1)
    stream = RowStream(MadeUpReader([5] * 8), 1, seed=1)
    list(stream)
    assert stream.epoch == 1
    assert places(stream) == order(seed=1, epoch=1)


def test_rows_of_the_open_episodes_are_mixed():
    rows = places(RowStream(MadeUpReader([50] * 4), 1, window=4))
    neighbours = sum(a[0] == b[0] for a, b in pairwise(rows))
    assert neighbours < 80  # 199 pairs, a quarter by chance
    assert [frame for index, frame in rows if index == 100] != list(range(50))


def test_no_more_than_the_window_and_one_episode_are_in_memory():
    reader, most, kept = MadeUpReader([3] * 40), 0, []
    for row in RowStream(reader, 1, window=4):
        kept.append(row)  # a row must not hold on to its episode
        most = max(most, reader.in_memory())
    assert most <= 6  # 4 in the window, 1 read ahead, 1 that the last row used up


def test_the_last_action_is_repeated_at_the_end_of_an_episode():
    rows = {row.frame: row.actions[:, 0].tolist() for row in RowStream(MadeUpReader([3]), 4)}
    assert rows == {0: [0, 1, 2, 2], 1: [1, 2, 2, 2], 2: [2, 2, 2, 2]}


def test_broken_episodes_are_left_out_counted_and_named():
    stream = RowStream(MadeUpReader([2, 2, 2, 2], broken={1, 2}), 1)
    assert {episode for episode, _ in places(stream)} == {100, 103}
    list(stream)  # a second epoch meets them again
    assert sorted(stream.skipped) == [f"made_up, episode {i}: 'action' holds NaN" for i in (101, 102)]
    assert stream.state_dict()["skipped"] == stream.skipped


def test_a_strict_stream_stops_at_a_broken_episode():
    with pytest.raises(DatasetError, match="episode 101"):
        list(RowStream(MadeUpReader([2, 2, 2, 2], broken={1}), 1, strict=True))


def test_a_dataset_of_broken_episodes_is_an_error_and_no_endless_loop():
    with pytest.raises(DatasetError, match=r"all 3 episodes of rank 0 are broken; the first: made_up"):
        next(RowStream(MadeUpReader([2, 2, 2], broken={0, 1, 2}), 1).forever())


def test_more_processes_than_episodes_are_refused():
    with pytest.raises(DatasetError, match="2 episodes for 3 processes"):
        RowStream(MadeUpReader([2, 2]), 1, world=3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"seed": 1}, "seed"), ({"window": 2}, "window"), ({"world": 2}, "world")],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_position_of_another_stream_is_refused(changes, key):
    state = RowStream(MadeUpReader([2, 2]), 1).state_dict()
    with pytest.raises(DatasetError, match=f"saved with another {key}"):
        RowStream(MadeUpReader([2, 2]), 1, **changes).load_state_dict(state)


def test_a_position_in_another_dataset_is_refused():
    state = RowStream(MadeUpReader([2, 2]), 1).state_dict()
    with pytest.raises(DatasetError, match="saved with another dataset"):
        RowStream(MadeUpReader([2, 3]), 1).load_state_dict(state)


@pytest.mark.parametrize("version", [V21, V30])
def test_rows_of_a_dataset_on_disk_carry_what_training_needs(tmp_path, version):
    episodes = [episode(number, 4) for number in range(4)]
    folder = write(tmp_path / "data", episodes, version)
    if version == V21:
        change_column(folder / "data/chunk-000/episode_000002.parquet", "action")
    stream = RowStream(DatasetReader(folder, thoughts=True), 10)
    rows = list(stream)
    for row in rows:
        source = episodes[row.episode]
        assert np.array_equal(row.images, source.images[row.frame])
        assert np.array_equal(row.actions, source.chunks[row.frame])
        assert (row.thought, row.instruction) == (source.thoughts[row.frame], source.tasks[row.frame])
    assert len(rows) == (12 if version == V21 else 16)
    assert len(stream.skipped) == (1 if version == V21 else 0)
