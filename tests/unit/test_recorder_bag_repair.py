"""A recording that nobody closed: what is in it can be had, and the disk's end is a sentence."""

from __future__ import annotations

import errno
import shutil
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rclpy.serialization import serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from std_msgs.msg import String

from dtvla.cli import bag as bag_commands
from dtvla.evaluation.video import SIZE, EpisodeVideo
from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.recorder.bag_repair import RepairedBag, repair, salvage
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
    repaired = repair(killed)
    assert repaired.messages == 50
    assert texts(repaired.folder) == [str(number) for number in range(50)]


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


@pytest.mark.usefixtures("eager")
def test_of_a_closed_bag_that_is_damaged_inside_all_other_chunks_are_read_and_the_lost_are_counted(
    tmp_path: Path,
) -> None:
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 40)
    bag.close()
    file = tmp_path / "bag" / "bag.mcap"
    content = bytearray(file.read_bytes())
    for number in (3, 4, 20):
        content[content.index(f"{number} xx".encode())] ^= 1
    file.write_bytes(content)
    repaired = repair(tmp_path / "bag")
    assert texts(repaired.folder) == [str(number) for number in range(40) if number not in (3, 4, 20)]
    assert repaired == RepairedBag(
        tmp_path / "bag_repaired", 37, lost={"/topic_0": 2, "/topic_1": 1}, unconfirmed=[], exact=True
    )
    assert file.read_bytes() == content


@pytest.mark.usefixtures("eager")
def test_a_wrong_length_a_lost_piece_and_garbage_in_front_cost_only_what_they_hit(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 40)
    killed = shutil.copytree(tmp_path / "bag", tmp_path / "killed")
    content = bytearray((killed / "bag.mcap").read_bytes())
    chunk = content.rindex(b"\x06", 0, content.index(b"10 xx") - 80)
    content[chunk + 1 : chunk + 9] = (10**15).to_bytes(8, "little")  # more than the file is long
    piece = content.index(b"20 xx")
    del content[piece : piece + 5]
    (killed / "bag.mcap").write_bytes(b"garbage " * 999 + content)
    repaired = repair(killed)
    assert texts(repaired.folder) == [str(number) for number in range(40) if number not in (10, 20)]
    assert repaired.lost == {"/topic_0": 2}
    assert not repaired.exact


@pytest.mark.usefixtures("eager")
def test_channels_whose_first_chunk_is_damaged_are_found_where_they_are_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtvla.nodes.recorder.bag_writer.REPEAT_CHUNKS", 10)
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 15)
    killed = shutil.copytree(tmp_path / "bag", tmp_path / "killed")
    content = (killed / "bag.mcap").read_bytes()
    first = content.index(b"/topic_0"), content.index(b"/topic_1")
    for at in first:
        content = content[:at] + b"?" * 8 + content[at + 8 :]
    (killed / "bag.mcap").write_bytes(content)
    repaired = repair(killed)
    assert texts(repaired.folder) == [str(number) for number in range(2, 15)]
    assert (repaired.lost, repaired.unconfirmed) == ({"/topic_0": 1, "/topic_1": 1}, [])


def test_messages_of_a_channel_that_is_lost_everywhere_are_counted(tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    with (tmp_path / "bag" / "a.mcap").open("wb") as stream:
        writer = McapWriter(stream, compression=CompressionType.NONE, repeat_channels=False)
        writer.start("ros2")
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
        channel = writer.register_channel("/said", "cdr", schema)
        writer.add_message(channel, 5, b"", 5)
        writer.finish()
    content = (tmp_path / "bag" / "a.mcap").read_bytes()
    channel_at = content.index(b"/said") - 17
    chunk_crc = content.index(b"\x06") + 33
    content = (
        content[:chunk_crc]
        + b"\0\0\0\0"
        + content[chunk_crc + 4 : channel_at]
        + b"?"
        + content[channel_at + 1 :]
    )
    (tmp_path / "bag" / "a.mcap").write_bytes(content)
    repaired = repair(tmp_path / "bag")
    assert repaired.messages == 0
    assert repaired.lost == {"channel 1 (its name is lost)": 1}


@pytest.mark.parametrize("compression", [CompressionType.LZ4, CompressionType.ZSTD])
def test_a_compressed_chunk_that_cannot_be_unpacked_costs_its_own_messages(
    compression: CompressionType, tmp_path: Path
) -> None:
    (tmp_path / "bag").mkdir()
    with (tmp_path / "bag" / "a.mcap").open("wb") as stream:
        writer = McapWriter(stream, 200, compression)
        writer.start("ros2")
        schema = writer.register_schema("other_msgs/msg/Own", "ros2msg", b"string data")
        channel = writer.register_channel("/own", "cdr", schema)
        for number in range(20):
            writer.add_message(
                channel, number, serialize_message(String(data=f"{number} " + "x" * 80)), number
            )
        writer.finish()
    content = bytearray((tmp_path / "bag" / "a.mcap").read_bytes())
    magic = b"\x04\x22\x4d\x18" if compression is CompressionType.LZ4 else b"\x28\xb5\x2f\xfd"
    at = content.index(magic, content.index(magic) + 1)  # of the second chunk
    content[at : at + 4] = b"????"
    (tmp_path / "bag" / "a.mcap").write_bytes(content)
    repaired = repair(tmp_path / "bag")
    with Reader(repaired.folder) as reader:
        (connection,) = reader.connections
        stamps = [stamp for _, stamp, _ in reader.messages()]
    assert (connection.topic, connection.msgtype) == ("/own", "other_msgs/msg/Own")
    assert connection.msgdef.data == "string data"
    assert 10 < len(stamps) < 20
    assert repaired.lost == {"/own": 20 - len(stamps)}


def test_a_large_bag_is_repaired_with_the_memory_of_a_chunk(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 120, length=500_000)
    bag.close()
    file = tmp_path / "bag" / "bag.mcap"
    content = bytearray(file.read_bytes())
    content[30_000_000] ^= 1
    file.write_bytes(content)
    assert len(content) > 60_000_000
    del content, bag
    tracemalloc.start()
    try:
        repaired = repair(tmp_path / "bag")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert 115 <= repaired.messages < 120
    assert repaired.messages + sum(repaired.lost.values()) == 120


@pytest.mark.usefixtures("eager")
def test_a_repair_that_fails_leaves_the_damaged_bag_alone_and_no_half_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 5)
    killed = shutil.copytree(tmp_path / "bag", tmp_path / "killed")
    before = (killed / "bag.mcap").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dtvla.nodes.recorder.bag_writer.CheckedMcapWriter.close_chunk", full)
        with pytest.raises(Refusal, match=r"no room for .*killed_repaired.*stays as it is"):
            repair(killed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag", "killed"]
    assert (killed / "bag.mcap").read_bytes() == before
    assert repair(killed).messages == 5
    with pytest.raises(Refusal, match="exists already"):
        repair(killed)


def test_dtvla_bag_repair_says_what_is_saved_and_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = BagWriter(tmp_path / "bag")
    fill(bag, 4)
    bag.close()
    file = tmp_path / "bag" / "bag.mcap"
    content = bytearray(file.read_bytes())
    content[content.index(b"3 xx")] ^= 1
    file.write_bytes(content)
    assert bag_commands.repair(tmp_path / "bag") == bag_commands.OK
    assert capsys.readouterr().out.splitlines() == [
        f"0 messages are in {tmp_path / 'bag_repaired'}",
        "2 messages of /topic_0 are lost",
        "2 messages of /topic_1 are lost",
    ]


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
    assert repair(tmp_path / "bag").messages == 20


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
