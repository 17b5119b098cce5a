"""Writes an MCAP bag (rosbag2 format) from serialised messages; any ROS tool reads it.

What was written is with the system after `FLUSH_S` at the latest, in whole MCAP chunks: a writer that is
killed, or whose disk is full, leaves a file without an index, from which `bag_repair` gets everything else.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import NoReturn

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

import dtvla_msgs
from dtvla.nodes.common.parameters import Refusal

FLUSH_S = 0.05  # one control period


class DiskFull(Refusal):
    """There is no room left for the bag; it has been closed. The message says how."""


def typestore() -> Typestore:
    """The definitions of all ROS messages we record, our own included."""
    store = get_typestore(Stores.ROS2_KILTED)
    for file in sorted(_definitions().glob("*.msg")):
        store.register(get_types_from_msg(file.read_text(), f"dtvla_msgs/msg/{file.stem}"))
    return store


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
        self._connections: dict[str, Connection] = {}
        self._writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
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
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._writer.add_connection(topic, kind, typestore=self._store)
            self._connections[topic] = connection
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
