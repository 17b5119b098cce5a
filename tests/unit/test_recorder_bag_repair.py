"""A recording that nobody closed: what is in it can be had, and the disk's end is a sentence."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from rclpy.serialization import serialize_message
from rosbags.highlevel import AnyReader
from std_msgs.msg import String

from dtvla.evaluation.video import SIZE, EpisodeVideo
from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.recorder.bag_repair import repair, salvage
from dtvla.nodes.recorder.bag_writer import BagWriter, DiskFull, typestore
from dtvla.nodes.recorder.recorder_node import unused


def fill(bag: BagWriter, count: int, length: int = 10) -> None:
    for number in range(count):
        text = f"{number} " + "x" * length
        bag.write(f"/topic_{number % 2}", "std_msgs/msg/String", number, serialize_message(String(data=text)))


def texts(folder: Path) -> list[str]:
    with AnyReader([folder], default_typestore=typestore()) as reader:
        return [reader.deserialize(raw, c.msgtype).data.split()[0] for c, _, raw in reader.messages()]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtvla.nodes.recorder.bag_writer.FLUSH_S", 0.0)


@pytest.mark.usefixtures("eager")
def test_everything_that_a_killed_recorder_had_flushed_is_read_from_the_repaired_bag(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 50)
    killed = shutil.copytree(tmp_path / "bag", tmp_path / "killed")  # as the disk is, without the index
    result, count = repair(killed)
    assert count == 50
    assert texts(result) == [str(number) for number in range(50)]


@pytest.mark.usefixtures("eager")
def test_a_file_cut_anywhere_gives_a_beginning_of_what_was_written(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 12)
    whole = next((tmp_path / "bag").glob("*.mcap")).read_bytes()
    cut = tmp_path / "cut.mcap"
    most = 0
    for length in range(8, len(whole), 97):
        cut.write_bytes(whole[:length])
        stamps = [message.stamp_ns for message in salvage(cut)]
        assert stamps == list(range(len(stamps)))
        assert len(stamps) >= most
        most = len(stamps)
    assert most >= 11


def test_what_is_no_damaged_bag_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no \.mcap file"):
        repair(tmp_path)
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 3)
    bag.close()
    with pytest.raises(Refusal, match="complete"):
        repair(tmp_path / "bag")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.mcap").write_bytes(b"not one")
    with pytest.raises(Refusal, match="no MCAP"):
        repair(tmp_path / "other")


def test_little_room_ends_the_bag_while_it_can_still_be_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = BagWriter(tmp_path / "bag", min_free_mb=100.0)
    fill(bag, 5)
    usage = shutil.disk_usage(tmp_path)._replace(free=99_000_000)
    monkeypatch.setattr("dtvla.nodes.recorder.bag_writer.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match="99 MB left"):
        fill(bag, 1)
    bag.close()  # once more does nothing
    assert len(texts(tmp_path / "bag")) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.usefixtures("eager")
def test_a_full_disk_is_a_sentence_and_what_was_written_stays(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 20)
    with open("/dev/full", "wb", buffering=0) as full:
        bag._writer.storage.bio.raw.close()  # from here on each write meets a full disk
        bag._writer.storage.bio = open(full.fileno(), "wb", closefd=False)  # noqa: SIM115
        with pytest.raises(DiskFull, match="dtvla bag repair") as caught:
            fill(bag, 1)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.errno == errno.ENOSPC
    bag.close()
    assert repair(tmp_path / "bag")[1] == 20


def test_a_recorder_that_is_started_anew_takes_a_folder_of_its_own(tmp_path: Path) -> None:
    assert unused(tmp_path / "bag").name == "bag"
    (tmp_path / "bag").mkdir()
    assert unused(tmp_path / "bag").name == "bag_2"
    (tmp_path / "bag_2").mkdir()
    assert unused(tmp_path / "bag").name == "bag_3"
    (tmp_path / "a.mp4").touch()
    assert unused(tmp_path / "a.mp4").name == "a_2.mp4"


def test_a_video_that_nobody_closed_shows_all_but_its_last_moments(tmp_path: Path) -> None:
    video = EpisodeVideo(tmp_path / "a.mp4", 20.0)
    for shade in range(100):
        video.add(np.full((SIZE[1], SIZE[0], 3), shade, np.uint8))
    killed = shutil.copy(tmp_path / "a.mp4", tmp_path / "killed.mp4")
    with av.open(str(killed)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 60
    video.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 100
