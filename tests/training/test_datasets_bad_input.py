"""Every broken dataset is an error that names file, episode and key, and says what to do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_samples import CAMERAS, change_column, episode, write

from training.datasets.__main__ import main
from training.datasets.errors import DatasetError
from training.datasets.lerobot.layout import V21, V30
from training.datasets.lerobot.reading import DatasetReader

FRAMES = 6
DATA = "data/chunk-000/episode_000001.parquet"
VIDEO = f"videos/chunk-000/{CAMERAS[0]}/episode_000001.mp4"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Three datasets of three episodes: v2.1 with images, v2.1 with videos, v3.0 with images."""
    root = tmp_path_factory.mktemp("samples")
    episodes = [episode(number, FRAMES) for number in range(3)]
    write(root / "images", episodes, V21)
    write(root / "videos", episodes, V21, video=True)
    write(root / "v3", episodes, V30)
    return root


@pytest.fixture
def images(samples, tmp_path):
    return shutil.copytree(samples / "images", tmp_path / "images")


@pytest.fixture
def videos(samples, tmp_path):
    return shutil.copytree(samples / "videos", tmp_path / "videos")


@pytest.fixture
def v3(samples, tmp_path):
    return shutil.copytree(samples / "v3", tmp_path / "v3")


def change_info(folder, **changes):
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def said(folder, **options):
    """What reading the second episode is refused with."""
    with pytest.raises(DatasetError) as error:
        DatasetReader(folder, **options).read(1)
    return str(error.value)


def test_thoughts_that_are_asked_for_and_absent(images):
    features = json.loads((images / "meta/info.json").read_text())["features"]
    del features["reasoning"]
    change_info(images, features=features)
    assert DatasetReader(images).read(1).thoughts is None
    assert "meta/info.json: features lacks 'reasoning'" in said(images, thoughts=True)


def test_a_frame_without_a_thought(images):
    change_column(images / DATA, "reasoning", ["a", "b", None, "d", "e", "f"])
    assert f"{DATA}, episode 1: 'reasoning' is missing at frame 2" in said(images)


def test_another_action_dimension_than_the_model_has(images):
    assert "info.json: features.action has 7 dimensions, but 14 are expected" in said(images, action_dim=14)


def test_a_file_with_another_action_dimension_than_the_metadata_say(images):
    change_column(images / DATA, "action", [[0.0] * 6] * FRAMES)
    assert f"{DATA}, episode 1: 'action' has 6 dimensions, but 7 are expected" in said(images)


def test_actions_of_different_lengths_in_one_episode(images):
    change_column(images / DATA, "action", [[0.0] * 7] * 4 + [[0.0] * 6] * 2)
    assert f"{DATA}, episode 1: 'action' at frame 4 is not numbers of one shape" in said(images)


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_an_action_that_is_no_number(v3, value):
    path = "data/chunk-000/file-000.parquet"
    actions = [[0.5] * 7] * (3 * FRAMES)
    actions[FRAMES + 3] = [0.5, value] + [0.5] * 5
    change_column(v3 / path, "action", actions)
    assert f"{path}, episode 1: 'action' holds NaN or infinity at frame 3" in said(v3)
    DatasetReader(v3).read(2)  # its neighbours in the same file are whole


def test_missing_statistics(images):
    (images / "meta/norm_stats.json").unlink()
    with pytest.raises(DatasetError, match=r"meta/norm_stats\.json is missing: .* training\.datasets stats"):
        DatasetReader(images).normaliser()


@pytest.mark.parametrize("missing", ["q01", "q99", "mask"])
def test_a_statistic_that_is_missing(images, missing):
    path = images / "meta/norm_stats.json"
    content = json.loads(path.read_text())
    del content["action"][missing]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"meta/norm_stats\.json: action\.{missing} is missing"):
        DatasetReader(images).normaliser()


def test_statistics_without_a_mask_take_the_one_that_is_given(images):
    path = images / "meta/norm_stats.json"
    content = json.loads(path.read_text())
    del content["action"]["mask"]
    path.write_text(json.dumps(content))
    assert DatasetReader(images).normaliser([True] * 6 + [False]).mask.sum() == 6


def test_a_video_that_is_missing(videos):
    (videos / VIDEO).unlink()
    sentence = said(videos)
    assert f"{DATA}, episode 1, '{CAMERAS[0]}'" in sentence
    assert f"{VIDEO} is missing" in sentence


@pytest.mark.parametrize("cut", ["head", "middle", "noise", "codec"])
def test_a_video_that_does_not_decode(videos, cut):
    path = videos / VIDEO
    data = bytearray(path.read_bytes())
    if cut == "noise":  # the container is whole, the pictures are not
        begin = data.index(b"mdat") + 700
        data[begin : begin + 200] = bytes(200)
    if cut == "codec":  # a bug once: PyAV then has a stream without a decoder
        data = data.replace(b"avc1", b"????")
    path.write_bytes({"head": data[200:], "middle": data[: len(data) // 2]}.get(cut, data))
    sentence = said(videos)
    assert f"{DATA}, episode 1, '{CAMERAS[0]}'" in sentence
    assert f"{VIDEO} does not decode" in sentence


def test_a_video_that_is_shorter_than_the_episode(videos):
    other = write(videos.parent / "short", [episode(0, 2), episode(1, 4)], V21, video=True)
    shutil.copy(other / VIDEO, videos / VIDEO)
    assert f"{VIDEO} has no frame at 0.6000 s (frame 4 of the episode)" in said(videos)


def test_a_picture_that_does_not_decode(images):
    cells = [{"bytes": b"no picture", "path": None}] * FRAMES
    change_column(images / DATA, CAMERAS[1], cells)
    assert f"{DATA}, episode 1, '{CAMERAS[1]}', frame 0: the picture does not decode" in said(images)


def test_a_picture_outside_of_the_dataset_is_not_opened(images):
    change_column(images / DATA, CAMERAS[0], [{"bytes": None, "path": "../../secret.png"}] * FRAMES)
    assert f"'{CAMERAS[0]}', frame 0: the picture ../../secret.png is not in the dataset's folder" in said(
        images
    )


def test_pictures_of_another_size_than_the_metadata_say(images, tmp_path):
    small = write(tmp_path / "small", [episode(1, pixels=8)], V21) / "data/chunk-000/episode_000000.parquet"
    change_column(images / DATA, CAMERAS[0], pq.read_table(small).column(CAMERAS[0]).to_pylist())
    assert (
        f"episode 1, '{CAMERAS[0]}': the pictures are [8, 8, 3], but meta/info.json says [16, 16, 3]"
        in said(images)
    )
    features = json.loads((images / "meta/info.json").read_text())["features"]
    features[CAMERAS[0]]["shape"] = [8, 8, 3]
    change_info(images, features=features)
    assert f"episode 1: the cameras differ in size ('{CAMERAS[0]}' 8x8, '{CAMERAS[1]}' 16x16)" in said(images)
    assert DatasetReader(images, image_size=8).read(1).images.shape == (FRAMES, 2, 8, 8, 3)


def test_a_data_file_that_is_missing(images):
    (images / DATA).unlink()
    assert f"{DATA}, episode 1: the file is missing" in said(images)


def test_a_data_file_that_was_cut_off(images):
    data = (images / DATA).read_bytes()
    (images / DATA).write_bytes(data[: len(data) // 2])
    assert f"{DATA}, episode 1: no readable parquet file" in said(images)


@pytest.mark.parametrize("key", ["action", "timestamp", "task_index", CAMERAS[0]])
def test_a_column_that_is_missing(images, key):
    change_column(images / DATA, key)
    assert f"{DATA}, episode 1: there is no column '{key}'" in said(images)


def test_fewer_frames_than_the_metadata_say(images):
    shutil.copy(write(images.parent / "short", [episode(0), episode(1, 3)], V21) / DATA, images / DATA)
    assert f"{DATA}, episode 1: the file has 3 frames of it, but the metadata say length 6" in said(images)


def test_frames_out_of_order(images):
    change_column(images / DATA, "frame_index", [1, 0, 2, 3, 4, 5])
    assert f"{DATA}, episode 1: 'frame_index' does not count from 0" in said(images)


def test_time_that_stands_still(videos):
    change_column(videos / DATA, "timestamp", [0.0] * FRAMES)
    assert f"{DATA}, episode 1: 'timestamp' does not rise" in said(videos)


def test_a_task_nobody_knows(images):
    change_column(images / DATA, "task_index", [7] * FRAMES)
    assert f"{DATA}, episode 1: 'task_index' 7 is not in the dataset's tasks" in said(images)


def test_a_camera_nobody_has(images):
    assert "info.json: features lacks the camera 'top'; there are: observation.images.image" in said(
        images, cameras=["top"]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version is 'v1.6'"),
        ({"fps": 0}, "fps must be a number above 0, not 0"),
        ({"features": None}, "features is missing"),
        ({"features": {"action": {"dtype": "float32", "shape": 7}}}, "features.action.shape must be a list"),
        ({"chunks_size": 0}, "chunks_size must be a whole number of at least 1, not 0"),
        ({"data_path": None}, "data_path is missing"),
        ({"data_path": "../{episode_index:06d}.parquet"}, "data_path leads out of the dataset's folder"),
        ({"data_path": "/{episode_index:06d}.parquet"}, "data_path leads out of the dataset's folder"),
        ({"data_path": "{episode_index.__class__}"}, "no path template of LeRobot's"),
        ({"data_path": "{episode_index:>999999999}"}, "no path template of LeRobot's"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_metadata_that_cannot_be_used(images, changes, words):
    change_info(images, **changes)
    sentence = said(images)
    assert "meta/info.json" in sentence
    assert words in sentence


@pytest.mark.parametrize("name", ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"])
def test_metadata_that_are_no_json(images, name):
    (images / name).write_text('{"cut off": ')
    assert name in said(images)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"episode_index": 0, "length": 0}', "length must be a whole number of at least 1, not 0"),
        ('{"length": 6}', "episode_index must be a whole number of at least 0, not None"),
        ("[1]", "line 2 must hold a JSON object"),
        ('{"episode_index": 3, "length": 6}\n{"episode_index": 3, "length": 6}', "names episode 3 twice"),
    ],
    ids=["length", "index", "object", "twice"],
)
def test_a_line_of_the_episodes_that_cannot_be_used(images, line, words):
    path = images / "meta/episodes.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
    assert words in said(images)


@pytest.mark.parametrize("name", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_metadata_that_are_no_parquet(v3, name):
    (v3 / name).write_bytes(b"PAR1")
    assert name in said(v3)


def test_a_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"is no LeRobot dataset: meta/info\.json is missing"):
        DatasetReader(tmp_path)


def test_the_check_command_names_everything_that_is_broken(images, capsys):
    (images / DATA).unlink()
    change_column(images / "data/chunk-000/episode_000002.parquet", "action", [[np.nan] * 7] * FRAMES)
    assert main(["check", str(images)]) == 1
    out = capsys.readouterr().out
    assert "episode 1: the file is missing" in out
    assert "episode 2: 'action' holds NaN" in out
    assert "3 episodes, 2 of them broken" in out
