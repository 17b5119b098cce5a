"""Reads MCAP bags that were never closed: of a recorder that was killed, or whose disk was full.

An MCAP file is a sequence of records (mcap.dev/spec: opcode, length, content). Without its last part, the
index, most tools cannot open it, but every chunk before is whole. `repair` writes them into a new bag.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.recorder.bag_writer import BagWriter

MAGIC = b"\x89MCAP0\r\n"
SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0F
HEAD = struct.Struct("<BQ")


@dataclass(frozen=True)
class Salvaged:
    """One message of a damaged bag, as `BagWriter.write` takes it."""

    topic: str
    kind: str
    stamp_ns: int
    data: bytes


def salvage(file: Path) -> Iterator[Salvaged]:
    """All messages of an MCAP file, up to where it ends or stops making sense.

    Args:
        file: written by our recorder: without compression.

    Raises:
        Refusal: it is no MCAP file, or a compressed one.
    """
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise Refusal(f"{file} is no MCAP file: it does not begin as one.")
        schemas: dict[int, str] = {}
        channels: dict[int, tuple[str, int]] = {}
        size = file.stat().st_size
        while len(head := stream.read(HEAD.size)) == HEAD.size:
            code, length = HEAD.unpack(head)
            if code == DATA_END or length > size - stream.tell():
                return
            content = stream.read(length)
            if code == CHUNK:
                yield from _messages(_chunk(content, file), schemas, channels)
            else:
                yield from _messages(head + content, schemas, channels)


def repair(folder: Path) -> tuple[Path, int]:
    """Writes a bag that any tool reads, beside the damaged one; returns its folder and its messages.

    Args:
        folder: the damaged bag; it stays as it is.

    Raises:
        Refusal: there is nothing to repair, or no room for the result (see `BagWriter`).
    """
    files = sorted(folder.glob("*.mcap"))
    if not files:
        raise Refusal(f"There is no .mcap file in {folder}. Give the folder of a bag.")
    if (folder / "metadata.yaml").is_file():
        raise Refusal(f"The bag {folder} is complete: nothing is to be repaired.")
    result = folder.with_name(f"{folder.name}_repaired")
    bag, count = BagWriter(result), 0
    for file in files:
        for message in salvage(file):
            bag.write(message.topic, message.kind, message.stamp_ns, message.data)
            count += 1
    bag.close()
    return result, count


def _chunk(content: bytes, file: Path) -> bytes:
    """The records in a chunk: behind its times, size, checksum and compression."""
    name_length = int.from_bytes(content[28:32], "little")
    compression = content[32 : 32 + name_length].decode()
    if compression:
        raise Refusal(f"{file} is compressed ({compression}); our recorder writes none. Use `mcap recover`.")
    return content[32 + name_length + 8 :]


def _messages(
    records: bytes, schemas: dict[int, str], channels: dict[int, tuple[str, int]]
) -> Iterator[Salvaged]:
    at = 0
    while at + HEAD.size <= len(records):
        code, length = HEAD.unpack_from(records, at)
        content = records[at + HEAD.size : at + HEAD.size + length]
        at += HEAD.size + length
        if code == SCHEMA:
            schemas[int.from_bytes(content[:2], "little")] = _text(content, 2)
        elif code == CHANNEL:
            number, schema = struct.unpack_from("<HH", content)
            channels[number] = (_text(content, 4), schema)
        elif code == MESSAGE:
            number, _, stamp_ns = struct.unpack_from("<HIQ", content)
            topic, schema = channels[number]
            yield Salvaged(topic, schemas[schema], stamp_ns, content[22:])


def _text(content: bytes, at: int) -> str:
    length = int.from_bytes(content[at : at + 4], "little")
    return content[at + 4 : at + 4 + length].decode()
