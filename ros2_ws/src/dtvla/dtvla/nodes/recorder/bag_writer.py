"""Writes an MCAP bag (rosbag2 format) from serialised messages; any ROS tool reads it.

What was written is with the system after `FLUSH_S` at the latest, in whole MCAP chunks: a writer that is
killed, or whose disk is full, leaves a file without an index, from which `bag_repair` gets everything else.
Each chunk has a checksum, and what the channels are is repeated now and then: in a file that is damaged
inside, what is whole can be told and read.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import time
import zlib
from pathlib import Path
from typing import NoReturn

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter, write_channel, write_schema
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

import dtvla_msgs
from dtvla.nodes.common.parameters import Refusal

FLUSH_S = 0.05  # one control period
REPEAT_CHUNKS = 200  # so many chunks (10 s) later the channels are written again, 30 kB in all
NO_HASH = "INVALID"  # of a type: what ROS writes when there is none
CHECKSUM_AT = 9 + 3 * 8  # in a chunk: behind its opcode and length, first and last time, and size


class DiskFull(Refusal):
    """There is no room left for the bag; it has been closed. The message says how."""


def typestore() -> Typestore:
    """The definitions of all ROS messages we record, our own included."""
    store = get_typestore(Stores.ROS2_KILTED)
    for file in sorted(_definitions().glob("*.msg")):
        store.register(get_types_from_msg(file.read_text(), f"dtvla_msgs/msg/{file.stem}"))
    return store


class CheckedMcapWriter(McapWriter):
    """Gives chunks a checksum and writes more than once what the channels are, which rosbags does not."""

    _repeated = 0  # number of chunks when the channels were written last

    def write(self, connection: Connection, timestamp: int, data: bytes | memoryview) -> None:
        if len(self.chunks) - self._repeated >= REPEAT_CHUNKS and not self.chunk.bio.tell():
            self._repeat()
        super().write(connection, timestamp, data)

    def close_chunk(self) -> None:
        start = self.bio.tell()
        checksum = zlib.crc32(self.chunk.bio.getbuffer())
        super().close_chunk()
        self.bio.seek(start + CHECKSUM_AT)
        self.bio.write(struct.pack("<I", checksum))
        self.bio.seek(0, io.SEEK_END)

    def close(self, version: int, metadata: str) -> None:
        if self.chunks:
            if not self.chunk.bio.tell():  # a chunk without messages is of the last one's time
                self.chunk.message_start_time = self.chunk.message_end_time = self.message_end_time
            self._repeat()
        super().close(version, metadata)

    def _repeat(self) -> None:
        self._repeated = len(self.chunks)
        for schema in self.schemas:
            write_schema(self.chunk.bio, schema)
        for channel in self.channels:
            write_channel(self.chunk.bio, channel, self.schemas)


class _Writer(Writer):
    STORAGE_PLUGINS = {StoragePlugin.MCAP: CheckedMcapWriter}  # noqa: RUF012


class BagWriter:
    """One bag folder, written as messages come.

    Args:
        folder: the bag's folder; it must not exist.
        min_free_mb: with less room on the disk the bag is closed, while its index still fits.

    Raises:
        Refusal: it exists.
    """

    def __init__(self, folder: Path, min_free_mb: float = 0.0) -> None:
        if folder.exists():
            raise Refusal(
                f"The bag {folder} exists already and is not overwritten. Choose another output folder."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._store = typestore()
        self._connections: dict[tuple[str, str], Connection] = {}
        self._definitions: dict[str, str] = {}
        self._writer = _Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._folder, self._min_free_mb = folder, min_free_mb
        self._flushed_s = time.monotonic()
        self._closed = False

    def write(self, topic: str, kind: str, stamp_ns: int, data: bytes) -> None:
        """Appends a message.

        Args:
            topic: its topic.
            kind: its type, as in `std_msgs/msg/String`.
            stamp_ns: when it was received.
            data: the message in CDR.

        Raises:
            DiskFull: the bag has just been closed.
        """
        connection = self._connections.get((topic, kind))
        if connection is None:
            connection = self._connect(topic, kind)
            self._connections[topic, kind] = connection
        try:
            self._writer.write(connection, stamp_ns, data)
            self.flush()
        except OSError as error:
            self._give_up(error)
        free_mb = shutil.disk_usage(self._folder).free / 1e6
        if free_mb < self._min_free_mb:
            self.close()
            raise DiskFull(
                f"The disk of {self._folder} has {free_mb:.0f} MB left, less than min_free_mb "
                f"({self._min_free_mb:g}): recording has ended, and the bag is complete until now. Make "
                "room, then start the recorder again."
            )

    def learn(self, kind: str, definition: str) -> None:
        """Takes the definition of a type that only a bag of others knows; of ours we have it.

        It is copied and not parsed: rosbags would run code that it makes of it.

        Args:
            kind: the type's name.
            definition: as in a .msg file, with those of the types that it is made of (the bag format's form).
        """
        self._definitions[kind] = definition

    def flush(self) -> None:
        """Hands what is older than `FLUSH_S` over to the system, where a killed process cannot lose it."""
        now_s = time.monotonic()
        storage = self._writer.storage
        if now_s - self._flushed_s < FLUSH_S or not isinstance(storage, McapWriter):
            return
        self._flushed_s = now_s
        if storage.chunk.bio.tell():
            storage.close_chunk()
        storage.bio.flush()

    def close(self) -> None:
        """Writes the index; without it the bag has to be repaired before it can be read.

        Raises:
            DiskFull: there is no room for it.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.close()
        except OSError as error:
            self._give_up(error)

    def _connect(self, topic: str, kind: str) -> Connection:
        if kind in self._store.fielddefs or kind not in self._definitions:
            return self._writer.add_connection(topic, kind, typestore=self._store)
        return self._writer.add_connection(topic, kind, msgdef=self._definitions[kind], rihs01=NO_HASH)

    def _give_up(self, error: OSError) -> NoReturn:
        """Lets go of the file: what is in there stays as it is."""
        self._closed = True
        storage = self._writer.storage
        if isinstance(storage, McapWriter):
            with contextlib.suppress(OSError):  # it would write what does not fit
                storage.bio.detach().close()
        raise DiskFull(
            f"The bag {self._folder} cannot be written ({error.strerror}): recording has ended. What "
            f"is on the disk stays; make room, then run: dtvla bag repair {self._folder}"
        ) from error


def _definitions() -> Path:
    """The folder with the .msg files of dtvla_msgs: share/ of the prefix it is installed in."""
    package = Path(dtvla_msgs.__file__).parent
    for prefix in package.parents:
        folder = prefix / "share" / "dtvla_msgs" / "msg"
        if folder.is_dir():
            return folder
    raise Refusal(
        f"No share/dtvla_msgs/msg was found above {package}. Build the workspace again: make setup."
    )
