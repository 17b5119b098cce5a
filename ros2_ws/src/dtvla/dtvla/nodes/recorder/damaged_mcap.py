"""Finds what is whole in a damaged MCAP file (mcap.dev/spec), wherever the damage is.

A record counts as whole when the `mcap` package reads it and, asked to write it again, gives the same bytes:
lengths that disagree with each other are damage. After damage the search goes on byte by byte for the next
whole record. A chunk must also be what its checksum says; of chunks without one (other recorders write such)
the whole records are taken. The file is read piece by piece: memory is that of one chunk.
"""

from __future__ import annotations

import re
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import (
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    Message,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)

MAGIC = b"\x89MCAP0\r\n"
HEAD = struct.Struct("<BQ")  # opcode, length of the content
CHUNK_HEAD = struct.Struct("<QQQII")  # first and last time, size, checksum, length of the compression's name
MESSAGE_HEAD = struct.Struct("<HIQQ")
INDEX_HEAD = struct.Struct("<HI")
INDEX_ENTRY_BYTES = 16
MOST_BYTES = 2**28  # of a record, and of a chunk's records: a greater length is damage
MOST_OTHER_BYTES = 2**24  # of a record that holds neither messages nor a file
WINDOW_BYTES = 2**20  # how much is searched at once
KINDS: dict[int, Any] = {
    Opcode.HEADER: Header,
    Opcode.FOOTER: Footer,
    Opcode.SCHEMA: Schema,
    Opcode.CHANNEL: Channel,
    Opcode.MESSAGE: Message,
    Opcode.CHUNK: Chunk,
    Opcode.MESSAGE_INDEX: MessageIndex,
    Opcode.CHUNK_INDEX: ChunkIndex,
    Opcode.ATTACHMENT: Attachment,
    Opcode.ATTACHMENT_INDEX: AttachmentIndex,
    Opcode.STATISTICS: Statistics,
    Opcode.METADATA: Metadata,
    Opcode.METADATA_INDEX: MetadataIndex,
    Opcode.SUMMARY_OFFSET: SummaryOffset,
    Opcode.DATA_END: DataEnd,
}
# Where a record of use could begin: its opcode, a length below `MOST_BYTES`, and what else must hold there.
_LENGTH = rb".{3}[\x00-\x0f]\x00{4}"
_BEGINNINGS = (
    rb"\x03" + _LENGTH + rb".{4}\x00\x00[\x21-\x7e]",  # schema: its number, and a name
    rb"\x04" + _LENGTH + rb".{6}\x00\x00[\x21-\x7e]",  # channel: two numbers, and a topic
    rb"\x06" + _LENGTH + rb".{28}(?:\x00{4}|\x03\x00{3}lz4|\x04\x00{3}zstd)",
    rb"\x07" + _LENGTH,
    rb"\x0b" + _LENGTH,
)
_IN_FILE = re.compile(rb"(?s)(?=" + rb"|".join(_BEGINNINGS) + rb")")
_WITH_MESSAGES = re.compile(rb"(?s)(?=" + rb"|".join((*_BEGINNINGS, rb"\x05" + _LENGTH)) + rb")")
_LONGEST_BEGINNING = 64

_Definition = TypeVar("_Definition", Schema, Channel)
_Entries = list[tuple[int, int]]  # of a message index: (time, place in the chunk)


class DamagedMcap:
    """What is whole in an MCAP file.

    Args:
        file: any file.

    Attributes:
        recognised: it begins as an MCAP file, or something in it is whole.
        damaged: something in it is not.
        closed: it has the end that its writer gives it.
        channels: by number.
        schemas: by number.
        unconfirmed: numbers of channels whose name or type no checksum confirms, though messages have one:
            they are from a damaged place, or from the index, which has none.
        counted: it holds its writer's own count of messages.
        lost: messages of each channel that were there and are not readable, as far as the file tells.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.recognised = self.damaged = self.closed = False
        self._channels: list[tuple[bool, Channel]] = []
        self._schemas: list[tuple[bool, Schema]] = []
        self._places = {True: array("Q"), False: array("Q")}  # of chunks, by whether a checksum confirms them
        self._counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
        self._chunked = False  # chunks were written, whether or not one is whole
        self._loose = array("Q")  # places of messages outside chunks
        self._loose_counts: Counter[int] = Counter()
        self._last: dict[int, _Entries] = {}  # what indexes should say of the chunk before them
        self._gap = False  # since the last chunk that is whole
        self._sure = False  # that chunk has a checksum
        self._missing: Counter[int] = Counter()
        self._total: Statistics | None = None
        with file.open("rb") as stream:
            self._survey(stream, file.stat().st_size)
        self.channels, sure_channels = _chosen(self._channels)
        self.schemas, sure_schemas = _chosen(self._schemas)
        self.unconfirmed = {
            channel.id
            for channel in self.channels.values()
            if self._places[True] and not (channel.id in sure_channels and channel.schema_id in sure_schemas)
        }
        self.counted, self.lost = self._lost()

    def messages(self) -> Iterator[Message]:
        """All whole messages in the file's order; also those whose channel is lost."""
        with self.file.open("rb") as stream:
            for at in self._trusted():
                record = read_record(stream, at)
                if isinstance(record, Message):
                    yield record
                elif isinstance(record, Chunk) and (content := _content(record)) is not None:
                    yield from (each for _, each in _records(record, content) if isinstance(each, Message))

    def _trusted(self) -> array[int]:
        """Places of chunks, or of messages.

        A writer gives all its chunks a checksum or none, and puts all its messages into chunks or none: with
        one chunk that is confirmed, what is not is damage.
        """
        chunks = self._places[True] or self._places[False]
        return chunks if self._chunked else self._loose

    def _found(self) -> Counter[int]:
        """Messages of each channel in what is trusted."""
        return self._counts[bool(self._places[True])] if self._chunked else self._loose_counts

    def _lost(self) -> tuple[bool, Counter[int]]:
        """Whether the writer's count is there; what is missing by that, or by the indexes behind chunks."""
        found = self._found()
        total = self._total.channel_message_counts if self._total else {}
        if self._total and all(total.get(number, 0) >= count for number, count in found.items()):
            return True, Counter({number: count - found[number] for number, count in total.items()})
        return False, self._missing + (self._counts[False] if self._places[True] else Counter())

    def _survey(self, stream: IO[bytes], size: int) -> None:
        at, search = 0, 1
        while at < size:
            head = _bytes(stream, at, HEAD.size)
            if head.startswith(MAGIC):
                self.recognised = True
                at += len(MAGIC)
                search = at + 1
                continue
            record = read_record(stream, at)
            if record is not None and self._take(at, record):
                self.closed = isinstance(record, Footer)
                end = at + HEAD.size + HEAD.unpack(head)[1]
                # One that lost a byte has taken one of the next: what nothing confirms is searched again.
                search = 1 + (end if isinstance(record, Chunk) and record.uncompressed_crc else at)
                at = end
            else:
                self.damaged = self._gap = True
                self.closed = False
                at = _next_place(stream, search, _IN_FILE if self._chunked else _WITH_MESSAGES)
                search = at + 1
        self.recognised |= bool(self._trusted() or self._channels)

    def _take(self, at: int, record: McapRecord) -> bool:
        """Notes what a record says; False when it is a chunk that is not whole."""
        self._chunked |= isinstance(record, (Chunk, MessageIndex, ChunkIndex))
        if isinstance(record, Chunk):
            return self._take_chunk(at, record)
        if isinstance(record, Schema):
            self._schemas.append((False, record))
        elif isinstance(record, Channel):
            self._channels.append((False, record))
        elif isinstance(record, Message):
            self._loose.append(at)
            self._loose_counts[record.channel_id] += 1
        elif isinstance(record, MessageIndex):
            self._take_index(record)
        elif isinstance(record, Statistics):
            counts = record.channel_message_counts
            self._total = record if sum(counts.values()) == record.message_count else None
        return True

    def _take_index(self, index: MessageIndex) -> None:
        """Counts the messages that an index tells of and that were not read: of a chunk that is lost."""
        if self._sure and not self._gap:
            return  # of the chunk before it, of which all was read
        read = self._last.pop(index.channel_id, [])
        if self._gap and not set(read) <= set(index.records):
            read = []
        self._missing[index.channel_id] += max(0, len(index.records) - len(read))

    def _take_chunk(self, at: int, chunk: Chunk) -> bool:
        content = _content(chunk)
        if content is None:
            return False
        confirmed, end = chunk.uncompressed_crc != 0, 0
        self._last, self._gap, self._sure = {}, False, confirmed
        for place, record in _records(chunk, content):
            self.damaged |= place != end
            end = place + HEAD.size + HEAD.unpack_from(content, place)[1]
            if isinstance(record, Schema):
                self._schemas.append((confirmed, record))
            elif isinstance(record, Channel):
                self._channels.append((confirmed, record))
            elif isinstance(record, Message):
                self._last.setdefault(record.channel_id, []).append((record.log_time, place))
                self._counts[confirmed][record.channel_id] += 1
        self.damaged |= end != len(content)
        self._places[confirmed].append(at)
        return True


def read_record(stream: IO[bytes], at: int) -> McapRecord | None:
    """The record at a place; None when there is no whole one."""
    head = _bytes(stream, at, HEAD.size + CHUNK_HEAD.size + 12)
    if len(head) < HEAD.size:
        return None
    code, length = HEAD.unpack_from(head)
    if code not in KINDS or not _lengths_agree(code, length, head[HEAD.size :]):
        return None
    content = _bytes(stream, at + HEAD.size, length)
    if len(content) < length:
        return None
    source, again = ReadDataStream(BytesIO(content)), RecordBuilder()
    try:
        record: McapRecord = (
            Message.read(source, length) if code == Opcode.MESSAGE else KINDS[code].read(source)
        )
        record.write(again)
    except (McapError, struct.error, ValueError, OverflowError):
        return None
    return record if again.end()[HEAD.size :] == content else None  # type: ignore[no-untyped-call]


def _lengths_agree(code: int, length: int, beginning: bytes) -> bool:
    """Whether the lengths at a record's beginning fit its own: seen before a wrong one is read.

    Args:
        code: the opcode.
        length: of the content.
        beginning: the content's first bytes.
    """
    large = code in (Opcode.CHUNK, Opcode.MESSAGE, Opcode.ATTACHMENT)
    if length > (MOST_BYTES if large else MOST_OTHER_BYTES):
        return False
    if code == Opcode.MESSAGE:
        return length >= MESSAGE_HEAD.size
    if code == Opcode.MESSAGE_INDEX and len(beginning) >= INDEX_HEAD.size:
        entries = INDEX_HEAD.unpack_from(beginning)[1]
        return bool(entries == length - INDEX_HEAD.size and entries % INDEX_ENTRY_BYTES == 0)
    if code == Opcode.CHUNK and len(beginning) == CHUNK_HEAD.size + 12:
        *_, size, _, name = CHUNK_HEAD.unpack_from(beginning)
        if name > 4 or size > MOST_BYTES:
            return False
        data = int.from_bytes(beginning[CHUNK_HEAD.size + name :][:8], "little")
        return bool(length == CHUNK_HEAD.size + name + 8 + data)
    return True


def _content(chunk: Chunk) -> bytes | None:
    """A chunk's records; None when they cannot be unpacked or are not what their checksum says."""
    most = chunk.uncompressed_size + 1  # a wrong size must not fill the memory
    try:
        if chunk.compression == "zstd":
            data = zstandard.ZstdDecompressor().stream_reader(chunk.data).read(most)
        elif chunk.compression == "lz4":
            data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, most)
        elif not chunk.compression:
            data = chunk.data
        else:
            return None
    except (zstandard.ZstdError, RuntimeError, EOFError, MemoryError):
        return None
    if len(data) != chunk.uncompressed_size or chunk.uncompressed_crc not in (0, zlib.crc32(data)):
        return None
    return bytes(data)


def _records(chunk: Chunk, content: bytes) -> Iterator[tuple[int, McapRecord]]:
    """The whole records in a chunk and their places; messages must be of the chunk's own time."""
    stream, at = BytesIO(content), 0
    while at < len(content):
        record = read_record(stream, at)
        if isinstance(record, (Schema, Channel)) or (
            isinstance(record, Message)
            and chunk.message_start_time <= record.log_time <= chunk.message_end_time
        ):
            yield at, record
            at += HEAD.size + HEAD.unpack_from(content, at)[1]
        else:
            at = _next_place(stream, at + 1, _WITH_MESSAGES)


def _next_place(stream: IO[bytes], at: int, pattern: re.Pattern[bytes]) -> int:
    """The first place from `at` on with a whole record that the pattern knows; the stream's end if none."""
    while window := _bytes(stream, at, WINDOW_BYTES + _LONGEST_BEGINNING):
        for match in pattern.finditer(window, 0):
            if match.start() >= WINDOW_BYTES:
                break
            if read_record(stream, at + match.start()) is not None:
                return at + match.start()
        if len(window) <= WINDOW_BYTES:
            return at + len(window)
        at += WINDOW_BYTES
    return at


def _bytes(stream: IO[bytes], at: int, count: int) -> bytes:
    stream.seek(at)
    return stream.read(count)


def _chosen(found: list[tuple[bool, _Definition]]) -> tuple[dict[int, _Definition], set[int]]:
    """One definition for each number, and the numbers of those that a checksum confirms.

    Without a confirmed one it is the one with most copies.
    """
    numbers: dict[int, list[tuple[bool, _Definition]]] = {}
    for confirmed, each in found:
        numbers.setdefault(each.id, []).append((confirmed, each))
    chosen, sure = {}, set()
    for number, copies in numbers.items():
        best = [each for confirmed, each in copies if confirmed]
        if best:
            sure.add(number)
        best = best or [each for _, each in copies]
        chosen[number] = max(best, key=best.count)
    return chosen, sure
