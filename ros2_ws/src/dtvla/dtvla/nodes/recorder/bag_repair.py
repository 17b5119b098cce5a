"""Makes bags readable that were never closed, or that are damaged inside.

What is whole in them (`damaged_mcap`) is written into a new bag. The damaged one stays as it is, and the new
one appears under its name when it is complete.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.recorder.bag_writer import BagWriter, DiskFull
from dtvla.nodes.recorder.damaged_mcap import DamagedMcap

ENCODING = "cdr"  # of messages that a bag of ROS 2 holds


@dataclass(frozen=True)
class Salvaged:
    """One message of a damaged bag, as `BagWriter.write` takes it."""

    topic: str
    kind: str
    stamp_ns: int
    data: bytes


@dataclass(frozen=True)
class RepairedBag:
    """What came of a damaged bag."""

    folder: Path  # the new one
    messages: int  # in it
    lost: dict[
        str, int
    ]  # messages that were recorded and are not in it, by topic, as far as the old one tells
    unconfirmed: list[str]  # topics whose name or type comes from a damaged place and may be wrong
    exact: bool  # the old one holds its writer's count of messages: no others were recorded


def salvage(file: Path) -> Iterator[Salvaged]:
    """All messages of an MCAP file that are whole, and whose topic and type are known.

    Args:
        file: of any writer, compressed or not.

    Raises:
        Refusal: nothing in it is of an MCAP file.
    """
    mcap = DamagedMcap(file)
    if not mcap.recognised:
        raise Refusal(f"{file} is no MCAP file: nothing in it is of one. Give the folder of a recorded bag.")
    for _, message in _messages(mcap):
        if message is not None:
            yield message


def repair(folder: Path) -> RepairedBag:
    """Writes a bag that any tool reads, beside the damaged one.

    Args:
        folder: the damaged bag; it stays as it is.

    Raises:
        Refusal: there is nothing to repair, or no room for the result.
    """
    paths = sorted(folder.glob("*.mcap"))
    if not paths:
        raise Refusal(f"There is no .mcap file in {folder}. Give the folder of a bag.")
    result = folder.with_name(f"{folder.name}_repaired")
    if result.exists():
        raise Refusal(
            f"{result} exists already and is not overwritten. Move it away, then repair the bag again."
        )
    files = [DamagedMcap(path) for path in paths]
    if not any(file.recognised for file in files):
        raise Refusal(
            f"{paths[0]} is no MCAP file: nothing in it is of one. Give the folder of a recorded bag."
        )
    if (folder / "metadata.yaml").is_file() and all(file.closed and not file.damaged for file in files):
        raise Refusal(f"The bag {folder} is complete: nothing is to be repaired.")
    lost: Counter[str] = Counter()
    for file in files:
        for channel, count in file.lost.items():
            lost[_name(file, channel)] += count
    place = Path(tempfile.mkdtemp(prefix=f".{result.name}_", dir=result.parent))
    try:
        messages = _copy(files, BagWriter(place / result.name), lost)
        (place / result.name).rename(result)
    except DiskFull as full:
        raise Refusal(
            f"There is no room for {result} ({full.__cause__ or full}). The damaged bag stays as it is: make "
            "room, then repair it again."
        ) from full
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return RepairedBag(
        result,
        messages,
        lost=dict(sorted((+lost).items())),
        unconfirmed=sorted({file.channels[number].topic for file in files for number in file.unconfirmed}),
        exact=all(file.counted for file in files),
    )


def _copy(files: list[DamagedMcap], bag: BagWriter, lost: Counter[str]) -> int:
    """Writes the files' messages into a bag and closes it; counts those written, and those it cannot take."""
    count = 0
    for file in files:
        for schema in file.schemas.values():
            bag.learn(schema.name, schema.data.decode(errors="replace"))
        for name, message in _messages(file):
            if message is None:
                lost[name] += 1
                continue
            bag.write(message.topic, message.kind, message.stamp_ns, message.data)
            count += 1
    bag.close()
    return count


def _messages(file: DamagedMcap) -> Iterator[tuple[str, Salvaged | None]]:
    """A file's whole messages, each with a name of its channel; None when its topic or type is lost."""
    for message in file.messages():
        channel = file.channels.get(message.channel_id)
        schema = file.schemas.get(channel.schema_id) if channel else None
        name = _name(file, message.channel_id)
        if channel is None or schema is None or channel.message_encoding != ENCODING:
            yield name, None
        else:
            yield name, Salvaged(channel.topic, schema.name, message.log_time, message.data)


def _name(file: DamagedMcap, channel: int) -> str:
    known = file.channels.get(channel)
    return known.topic if known else f"channel {channel} (its name is lost)"
