"""Writes an MCAP bag (rosbag2 format) from serialised messages; any ROS tool reads it."""

from __future__ import annotations

from pathlib import Path

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

import dtvla_msgs
from dtvla.nodes.parameters import Refusal


def typestore() -> Typestore:
    """The definitions of all ROS messages we record, our own included."""
    store = get_typestore(Stores.ROS2_KILTED)
    for file in sorted(_definitions().glob("*.msg")):
        store.register(get_types_from_msg(file.read_text(), f"dtvla_msgs/msg/{file.stem}"))
    return store


class Bag:
    """One bag folder, written as messages come.

    Args:
        folder: the bag's folder; it must not exist.

    Raises:
        Refusal: it exists.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            raise Refusal(
                f"The bag {folder} exists already and is not overwritten. Choose another output folder."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._store = typestore()
        self._connections: dict[str, Connection] = {}
        self._writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()

    def write(self, topic: str, kind: str, stamp_ns: int, data: bytes) -> None:
        """Appends a message.

        Args:
            topic: its topic.
            kind: its type, as in `std_msgs/msg/String`.
            stamp_ns: when it was received.
            data: the message in CDR.
        """
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._writer.add_connection(topic, kind, typestore=self._store)
            self._connections[topic] = connection
        self._writer.write(connection, stamp_ns, data)

    def close(self) -> None:
        """Writes the index; without it the bag has to be repaired before it can be read."""
        self._writer.close()


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
