"""Recorded bags with bytes changed, cut out, put in: what is whole is read, nothing else, nothing raises."""

from __future__ import annotations

import io
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fuzzing import damaged, fuzz, in_words, new_folder
from hypothesis import given
from hypothesis import strategies as st
from mcap.opcode import Opcode
from mcap.records import Message
from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, Writer

pytest.importorskip("rclpy")

from rclpy.serialization import serialize_message
from std_msgs.msg import String

from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.recorder import bag_writer
from dtvla.nodes.recorder.bag_repair import Salvaged, repair, salvage
from dtvla.nodes.recorder.bag_writer import BagWriter
from dtvla.nodes.recorder.damaged_mcap import MAGIC, DamagedMcap

KIND = "std_msgs/msg/String"
MESSAGES = 30
MOST_DAMAGES = 4  # of `damaged`
END = bytes([Opcode.FOOTER, 20, *[0] * 27]) + MAGIC


@cache
def written() -> tuple[Salvaged, ...]:
    return tuple(
        Salvaged(
            f"/topic_{number % 3}",
            KIND,
            1_700_000_000_000_000_000 + number,
            bytes(serialize_message(String(data=f"{number} " + "x" * (number % 7) * 20))),
        )
        for number in range(MESSAGES)
    )


@cache
def recorded(closed: bool) -> bytes:
    """A bag of our recorder, with a chunk for each message; without its end if it was killed."""
    with new_folder() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bag_writer, "FLUSH_S", 0.0)
        patch.setattr(bag_writer, "REPEAT_CHUNKS", 8)
        bag = BagWriter(place / "bag")
        for message in written():
            bag.write(message.topic, message.kind, message.stamp_ns, message.data)
        content = (place / "bag" / "bag.mcap").read_bytes()
        bag.close()
        return (place / "bag" / "bag.mcap").read_bytes() if closed else content


@cache
def of_others(compression: CompressionType, chunks: bool, checksums: bool) -> bytes:
    """A bag as other recorders write it."""
    target = io.BytesIO()
    writer = Writer(
        target, 400, compression, use_chunking=chunks, enable_crcs=checksums, enable_data_crcs=checksums
    )
    writer.start("ros2", "another")
    schema = writer.register_schema(KIND, "ros2msg", b"string data")
    channels: dict[str, int] = {}
    for message in written():
        if message.topic not in channels:
            channels[message.topic] = writer.register_channel(message.topic, "cdr", schema)
        writer.add_message(channels[message.topic], message.stamp_ns, message.data, message.stamp_ns)
    writer.finish()
    return target.getvalue()


def confirmed(content: bytes, place: Path) -> tuple[Counter[Any], Counter[Any]]:
    """What is read of a file, and what was written; without topics if damaged places alone tell one."""
    found = read(content, place)
    if DamagedMcap(place / "bag.mcap").unconfirmed:
        return Counter((m.stamp_ns, m.data) for m in found), Counter((m.stamp_ns, m.data) for m in written())
    return Counter(found), Counter(written())


def read(content: bytes, place: Path) -> list[Salvaged]:
    path = place / "bag.mcap"
    path.write_bytes(content)
    return in_words(lambda: list(salvage(path)), Refusal) or []


def in_whole_chunks(content: bytes, original: bytes) -> Counter[bytes]:
    """The messages in those chunks that are in the damaged copy of a file, byte for byte."""
    found: Counter[bytes] = Counter()
    at = len(MAGIC)
    while at < len(original) - len(MAGIC):
        end = at + 9 + int.from_bytes(original[at + 1 : at + 9], "little")
        if original[at] == Opcode.CHUNK and original[at:end] in content:
            records = StreamReader(io.BytesIO(MAGIC + original[at:end] + END)).records
            found.update(record.data for record in records if isinstance(record, Message))
        at = end
    return found


def messages(content: bytes, place: Path) -> Counter[bytes]:
    path = place / "bag.mcap"
    path.write_bytes(content)
    return Counter(message.data for message in DamagedMcap(path).messages())


@fuzz(300)
@given(closed=st.booleans(), data=st.data())
def test_of_a_damaged_bag_all_whole_chunks_are_read_and_nothing_that_was_not_written(
    closed: bool, data: st.DataObject
) -> None:
    original = recorded(closed)
    content = data.draw(damaged(original), label="content")
    with new_folder() as place:
        found, all_written = confirmed(content, place)
        assert not found - all_written
        assert not in_whole_chunks(content, original) - messages(content, place)


@fuzz(30)
@given(closed=st.booleans(), data=st.data())
def test_a_repaired_bag_holds_what_is_whole_and_counts_what_was_lost(
    closed: bool, data: st.DataObject
) -> None:
    """Without the writer's count a damaged index may tell of a message too many."""
    content = data.draw(damaged(recorded(closed)), label="content")
    with new_folder() as place:
        (place / "bag").mkdir()
        found = read(content, place / "bag")
        repaired = in_words(lambda: repair(place / "bag"), Refusal)
        if repaired is None:
            assert not found
            return
        assert list(salvage(repaired.folder / "bag_repaired.mcap")) == found
        known = repaired.messages + sum(repaired.lost.values())
        assert known == MESSAGES if repaired.exact else known <= MESSAGES + MOST_DAMAGES


@fuzz(300)
@given(
    compression=st.sampled_from(CompressionType),
    chunks=st.booleans(),
    checksums=st.booleans(),
    data=st.data(),
)
def test_a_damaged_bag_of_another_recorder_is_read_without_a_traceback(
    compression: CompressionType, chunks: bool, checksums: bool, data: st.DataObject
) -> None:
    original = of_others(compression, chunks, checksums)
    content = data.draw(damaged(original), label="content")
    with new_folder() as place:
        found, all_written = confirmed(content, place)
        if chunks and checksums:
            assert not found - all_written
        assert not in_whole_chunks(content, original) - messages(content, place)


@fuzz(300)
@given(content=st.binary(max_size=2000), magic=st.booleans())
def test_any_bytes_are_a_bag_or_refused_in_words(content: bytes, magic: bool) -> None:
    with new_folder() as place:
        read((b"\x89MCAP0\r\n" if magic else b"") + content, place)


@pytest.mark.parametrize("compression", CompressionType)
@pytest.mark.parametrize("chunks", [True, False])
@pytest.mark.parametrize("checksums", [True, False])
def test_a_whole_bag_of_another_recorder_is_read_to_the_last_message(
    compression: CompressionType, chunks: bool, checksums: bool, tmp_path: Path
) -> None:
    path = tmp_path / "bag.mcap"
    path.write_bytes(of_others(compression, chunks, checksums))
    assert list(salvage(path)) == list(written())
    mcap = DamagedMcap(path)
    assert (mcap.damaged, mcap.closed, mcap.counted, sum(mcap.lost.values())) == (False, True, True, 0)
