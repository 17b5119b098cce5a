"""What is written in LeRobot's format is read back as it was."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_samples import CAMERAS, CODEC_ERROR, FPS, change_column, episode, write

from dtvla.sim.env import CONTROL_PERIOD_S
from training.collect import HORIZON, save_episode
from training.datasets import recorded
from training.datasets.__main__ import main
from training.datasets.errors import DatasetError
from training.datasets.lerobot import stats, writing
from training.datasets.lerobot.layout import V21, V30
from training.datasets.lerobot.reading import DatasetReader
from training.datasets.lerobot.writing import DatasetWriter


@pytest.mark.parametrize("video", [False, True], ids=["image", "video"])
@pytest.mark.parametrize("version", [V21, V30])
def test_an_episode_comes_back_as_it_was_written(tmp_path, version, video):
    written = [episode(number, 4 + number) for number in range(3)]
    reader = DatasetReader(
        write(tmp_path / "data", written, version, video=video), thoughts=True, action_dim=7
    )
    assert (reader.layout.version, reader.layout.fps, reader.cameras) == (version, FPS, CAMERAS)
    for position, before in enumerate(written):
        after = reader.read(position)
        assert np.array_equal(after.actions, before.actions)
        assert np.array_equal(after.chunks, before.chunks)
        assert (after.tasks, after.thoughts, after.success) == (before.tasks, before.thoughts, before.success)
        error = np.abs(after.images.astype(int) - before.images).max()
        assert error <= (CODEC_ERROR if video else 0)


def test_proprioception_is_written_and_its_statistics_are_where_the_reference_looks(tmp_path):
    state = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    folder = write(tmp_path / "data", [episode(0, state=state)])
    assert np.array_equal(DatasetReader(folder).read(0).state, state)
    found = json.loads((folder / "meta/norm_stats.json").read_text())
    assert len(found["state"]["q01"]) == 8
    assert set(found["state"]) <= set(found["action"])  # the loader takes each of its keys from both


@pytest.mark.parametrize("version", [V21, V30])
def test_statistics_of_the_actions_are_exact_over_all_episodes(tmp_path, version):
    written = [episode(number, 4 + 3 * number) for number in range(3)]
    reader = DatasetReader(write(tmp_path / "data", written, version))
    every = np.concatenate([each.actions for each in written]).astype(np.float64)
    normaliser = reader.normaliser()
    assert np.allclose(normaliser.q01, np.quantile(every, 0.01, axis=0))
    assert np.allclose(normaliser.q99, np.quantile(every, 0.99, axis=0))
    assert normaliser.mask.tolist() == [True] * 6 + [False]
    stats.write_norm_stats(reader.folder, [True] * 7)
    assert reader.normaliser().mask.all()


def test_per_episode_statistics_add_up_to_those_of_all_frames():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)) for n in (4, 9, 2)]
    total = stats.together([{"action": stats.of_numbers(part)} for part in parts])["action"]
    every = np.concatenate(parts)
    assert np.allclose(total["mean"], every.mean(0))
    assert np.allclose(total["std"], every.std(0))
    assert total["count"].tolist() == [15]


def test_thoughts_stored_as_token_ids_are_decoded_with_the_tokenizer_that_is_named(tmp_path):
    folder = write(tmp_path / "data", [episode(0, 2)])
    change_column(folder / "data/chunk-000/file-000.parquet", "reasoning", [[1, 2, 0], [0, 0, 0]])

    class Tokenizer:
        def decode(self, ids, skip_special_tokens=True):
            return "".join({1: "<think>move above", 2: " it</think>"}[i] for i in ids)

    reader = DatasetReader(folder, tokenizer=Tokenizer())
    assert reader.read(0).thoughts == ("move above it", "")
    with pytest.raises(DatasetError, match=r"episode 0: 'reasoning' holds token ids"):
        DatasetReader(folder).read(0)


def test_writing_that_was_interrupted_goes_on_where_a_file_was_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "EPISODES_PER_FILE", 2)
    episodes = [episode(number) for number in range(5)]
    with DatasetWriter(tmp_path / "data", V30, fps=FPS, cameras=CAMERAS) as first:
        for each in episodes[:3]:  # two of them are in a file that was closed
            first.add(each)
    (tmp_path / "data.part/data/chunk-000/file-001.parquet").write_bytes(b"PAR1")  # as a kill leaves it
    assert not (tmp_path / "data").exists()
    with (tmp_path / "data.part" / writing.JOURNAL).open("a") as journal:
        journal.write('{"columns": {"cam')  # killed in the middle of a line
    with DatasetWriter(tmp_path / "data", V30, fps=FPS, cameras=CAMERAS) as second:
        assert second.done == {"source 0", "source 1"}
        for each in episodes[2:]:
            second.add(each)
        second.finish()
    write(tmp_path / "at_once", episodes)
    broken, whole = DatasetReader(tmp_path / "data"), DatasetReader(tmp_path / "at_once")
    assert [entry.data.name for entry in broken.layout.episodes] == [
        f"file-{i:03d}.parquet" for i in (0, 0, 1, 1, 2)
    ]
    for position in range(5):
        assert np.array_equal(broken.read(position).images, whole.read(position).images)
    assert broken.action_stats() == whole.action_stats()
    assert not (tmp_path / "data.part").exists()


def test_a_part_folder_that_was_begun_otherwise_is_not_continued(tmp_path):
    DatasetWriter(tmp_path / "data", V30, fps=FPS, cameras=CAMERAS)
    with pytest.raises(DatasetError, match=r"data\.part was begun with another version"):
        DatasetWriter(tmp_path / "data", V21, fps=FPS, cameras=CAMERAS)


def test_a_dataset_that_is_there_is_not_overwritten(tmp_path):
    write(tmp_path / "data", [episode(0)])
    with pytest.raises(DatasetError, match=r"data is there already"):
        write(tmp_path / "data", [episode(0)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thoughts": None}, r"source 1: thoughts is False, but .* True"),
        ({"actions": np.zeros((6, 6), np.float32), "chunks": None}, r"source 1: action_dim is 6, but .* 7"),
        (
            {"actions": np.full((6, 7), np.nan, np.float32)},
            r"source 1: 'action' holds NaN or infinity at frame 0",
        ),
        ({"tasks": ("pick",) * 3}, r"source 1: 'task' has 3 frames, but 'action' has 6"),
        ({"images": np.zeros((6, 1, 16, 16, 3), np.uint8)}, r"source 1: 'images' has 1 cameras"),
        ({"images": np.zeros((6, 2, 8, 8, 3), np.uint8)}, r"source 1: height is 8, but .* 16"),
    ],
    ids=["thoughts", "dimension", "nan", "lengths", "cameras", "size"],
)
def test_an_episode_that_does_not_fit_is_refused_before_it_is_written(tmp_path, changes, said):
    with DatasetWriter(tmp_path / "data", V30, fps=FPS, cameras=CAMERAS) as writer:
        writer.add(episode(0))
        with pytest.raises(DatasetError, match=said):
            writer.add(episode(1, **changes))


def test_a_video_needs_even_sides(tmp_path):
    with DatasetWriter(tmp_path / "data", V30, fps=FPS, cameras=CAMERAS, video=True) as writer:
        for _ in range(2):  # the second try finds nothing half begun
            with pytest.raises(
                DatasetError, match=r"source 0: a video needs an even height and width, not 15x15"
            ):
                writer.add(episode(0, pixels=15))
        writer.add(episode(1))
        assert len(DatasetReader(writer.finish())) == 1


@pytest.fixture
def recordings(tmp_path):
    """Three recordings in the recorder's format; the last one looked at every second step."""
    rng = np.random.default_rng(0)
    for number, every in enumerate((3, 3, 2)):
        frames = np.arange(0, 12, every)
        count = len(frames)
        thoughts = np.array([["near"] * 2] * 2 + [["", ""]] * (count - 2))
        arrays = {
            "actions": rng.normal(size=(12, 7)).astype(np.float32),
            "frames": frames.astype(np.int32),
            "images": rng.integers(0, 255, (count, 2, 16, 16, 3), np.uint8),
            "thoughts": np.array([f"thought {t}" for t in frames]),
            "other_thoughts": thoughts,
            "other_chunks": rng.normal(size=(count, 2, HORIZON, 7)).astype(np.float32),
            "instruction": np.array("pick up the can"),
            "other_instructions": np.array(["pick up the milk", "pick up the box"]),
            "success": np.array(True),
        }
        (tmp_path / "recorded").mkdir(exist_ok=True)
        save_episode(tmp_path / f"recorded/can_{number}.npz", arrays)
    return tmp_path / "recorded"


def test_a_recording_becomes_the_frames_that_were_looked_at_with_the_whole_chunk(
    recordings, tmp_path, capsys
):
    out = tmp_path / "lerobot"
    assert main(["convert", "--source", str(recordings), "--out", str(out), "--every", "3"]) == 0
    reader = DatasetReader(out)
    assert (len(reader), reader.layout.fps) == (2, 20 / 3)
    assert reader.layout.info["dtvla"]["control_steps_per_frame"] == 3
    with np.load(recordings / "can_0.npz") as arrays:
        found = reader.read(0)
        assert np.array_equal(found.images, arrays["images"])
        assert np.array_equal(found.actions, arrays["actions"][::3])
        ahead = np.concatenate([arrays["actions"][3:], arrays["actions"][-1:]])
        assert np.array_equal(found.chunks[1], ahead)
        assert found.thoughts == tuple(arrays["thoughts"])
    assert found.success is True
    assert main(["info", str(out)]) == 0
    assert "v3.0" in capsys.readouterr().out
    assert main(["check", str(out), "--thoughts", "--action-dim", "7"]) == 0


def test_the_other_instructions_become_episodes_of_their_own_on_request(recordings):
    episodes = list(recorded.read_recording(recordings / "can_0.npz", others=True))
    assert [(each.tasks[0], len(each), each.success) for each in episodes] == [
        ("pick up the can", 4, True),
        ("pick up the milk", 2, False),
        ("pick up the box", 2, False),
    ]


def test_recordings_at_different_rates_are_not_mixed(recordings, tmp_path, capsys):
    assert main(["convert", "--source", str(recordings), "--out", str(tmp_path / "lerobot")]) == 1
    assert "1 of every 2, 2 of every 3" in capsys.readouterr().out


def test_a_broken_recording_is_left_out_and_named(recordings, tmp_path, capsys):
    whole = (recordings / "can_1.npz").read_bytes()
    (recordings / "can_2.npz").unlink()
    (recordings / "can_1.npz").write_bytes(whole[:2000])
    assert main(["convert", "--source", str(recordings), "--out", str(tmp_path / "lerobot")]) == 1
    assert "left out: " in (said := capsys.readouterr().out)
    assert "can_1.npz is no readable recording" in said
    assert len(DatasetReader(tmp_path / "lerobot")) == 1


def test_the_recorders_rate_is_the_simulators():
    assert recorded.CONTROL_HZ * CONTROL_PERIOD_S == 1
    assert recorded.CHUNK == HORIZON


def test_every_episode_of_a_v3_file_is_a_row_group_of_its_own(tmp_path):
    folder = write(tmp_path / "data", [episode(number) for number in range(3)])
    assert pq.ParquetFile(folder / "data/chunk-000/file-000.parquet").num_row_groups == 3
