"""LeRobot datasets on the command line.

python -m training.datasets convert --source data/embedded --out data/lerobot --every 3   # or --video
python -m training.datasets info data/lerobot     # what is in it
python -m training.datasets check data/lerobot    # reads all of it, names what is broken, exit code 1
python -m training.datasets stats data/lerobot    # computes meta/norm_stats.json
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer

from training.datasets.episode import REASONING
from training.datasets.errors import DatasetError
from training.datasets.lerobot.layout import NORM_STATS, V21, V30
from training.datasets.lerobot.reading import DatasetReader
from training.datasets.lerobot.stats import default_mask, write_norm_stats
from training.datasets.lerobot.writing import DatasetWriter
from training.datasets.recorded import CAMERAS, CONTROL_HZ, find_recordings, read_recording

_VERSIONS = {"v2": V21, "v3": V30}
_Folder = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Convert:
    """Writes what training.collect recorded as a LeRobot dataset; the same command again resumes."""

    out: Path  # folder of the new dataset; must not be there yet
    source: Path = Path("data/embedded")  # folder of the recorded npz files
    version: Literal["v2", "v3"] = "v3"  # LeRobot v2.1 or v3.0
    video: bool = False  # H.264 videos instead of PNG images: smaller, not lossless
    every: int | None = None  # only recordings with so many control steps between frames
    others: bool = (
        False  # also an episode for each of the suite's other instructions, with its expert's labels
    )


@dataclass(frozen=True)
class Info:
    """Shows what a dataset holds."""

    folder: _Folder  # holds meta, data and perhaps videos


@dataclass(frozen=True)
class Check:
    """Reads a whole dataset and names what is broken; exit code 1 if anything is."""

    folder: _Folder  # holds meta, data and perhaps videos
    thoughts: bool = False  # a dataset without thoughts is broken
    action_dim: int | None = None  # another dimension is broken
    tokenizer: Path | None = None  # tokenizer.json, for a dataset that keeps thoughts as token ids


@dataclass(frozen=True)
class Stats:
    """Computes meta/norm_stats.json from every action of a dataset."""

    folder: _Folder  # holds meta, data and perhaps videos
    keep: tuple[int, ...] | None = (
        None  # dimensions that are not normalised; the last one (a gripper) if left out
    )


def convert(config: Convert) -> int:
    """Writes a dataset from recordings; broken ones are left out and named, with exit code 1."""
    recordings, skipped = find_recordings(config.source, config.every)
    every = recordings[0].every
    notes = {
        "dtvla": {
            "control_hz": CONTROL_HZ,
            "control_steps_per_frame": every,
            "source": "training.collect",
            "note": "A frame is a control step that was looked at. action is its action; action_chunk holds "
            "the actions of this and the next control steps.",
        }
    }
    with DatasetWriter(
        config.out,
        _VERSIONS[config.version],
        fps=CONTROL_HZ / every,
        cameras=CAMERAS,
        video=config.video,
        notes=notes,
    ) as writer:
        done = writer.done
        for recording in track(recordings, description="converting"):
            try:
                for episode in read_recording(recording.path, others=config.others):
                    if episode.name not in done:
                        writer.add(episode)
            except DatasetError as error:
                skipped.append(str(error))
        writer.finish()
    for sentence in skipped:
        print(f"left out: {sentence}")
    print(f"{config.out}: {len(DatasetReader(config.out))} episodes; {len(skipped)} recordings were left out")
    return 1 if skipped else 0


def info(config: Info) -> int:
    """Prints a table of what the metadata say."""
    reader = DatasetReader(config.folder)
    layout = reader.layout
    tasks = len(layout.tasks)
    absent = [
        entry.name
        for entry in layout.episodes
        for path in (entry.data, *(span.path for span in entry.videos.values()))
        if not (config.folder / path).is_file()
    ]
    size = sum(path.stat().st_size for path in config.folder.rglob("*") if path.is_file())
    kinds = {key: layout.features[key] for key in reader.cameras}
    cameras = [f"{key} ({kind.dtype}, {kind.shape[0]}x{kind.shape[1]})" for key, kind in kinds.items()]
    thoughts = {"string": "yes", "": "no"}.get(
        layout.features[REASONING].dtype if reader.has_thoughts else "", "as token ids"
    )
    table = Table(show_header=False, title=str(config.folder))
    for name, value in (
        ("LeRobot version", layout.version),
        ("episodes", f"{len(layout.episodes)}"),
        ("frames", f"{layout.frames}"),
        ("tasks", f"{tasks}"),
        ("frames per second", f"{layout.fps:g}"),
        ("cameras", "\n".join(cameras)),
        ("action dimensions", f"{reader.action_dim}"),
        ("thoughts", thoughts),
        ("norm_stats.json", "yes" if (config.folder / NORM_STATS).is_file() else "no"),
        ("episodes without a file", "\n".join(dict.fromkeys(absent)) or "none"),
        ("size", f"{size / 2**20:.1f} MiB"),
    ):
        table.add_row(name, value)
    Console().print(table)
    return 0


def check(config: Check) -> int:
    """Reads every episode; prints a sentence for each thing that is broken."""
    tokenizer = None if config.tokenizer is None else _tokenizer(config.tokenizer)
    reader = DatasetReader(
        config.folder, thoughts=config.thoughts or None, action_dim=config.action_dim, tokenizer=tokenizer
    )
    broken = []
    for position in track(range(len(reader)), description="reading"):
        try:
            reader.read(position)
        except DatasetError as error:
            broken.append(str(error))
    end = f"{config.folder}: {len(reader)} episodes, {len(broken)} of them broken"
    try:
        reader.normaliser(default_mask(reader.action_dim))
    except DatasetError as error:
        broken.append(str(error))
        end += f"; {NORM_STATS} cannot be used"
    for sentence in broken:
        print(sentence)
    print(end)
    return 1 if broken else 0


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own for it
        raise DatasetError(f"{path} is no tokenizer.json that can be read: {error}.") from None


def stats(config: Stats) -> int:
    """Writes norm_stats.json."""
    width = DatasetReader(config.folder).action_dim
    mask = None if config.keep is None else [d not in config.keep for d in range(width)]
    print(f"wrote {write_norm_stats(config.folder, mask)}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; what cannot be used is one sentence and exit code 1."""
    kinds: dict[str, Callable[..., Any]] = {"convert": Convert, "info": Info, "check": Check, "stats": Stats}
    config = tyro.extras.subcommand_cli_from_dict(
        kinds, prog="python -m training.datasets", description=(__doc__ or "").splitlines()[0], args=arguments
    )
    try:
        if isinstance(config, Convert):
            return convert(config)
        if isinstance(config, Info):
            return info(config)
        return check(config) if isinstance(config, Check) else stats(config)
    except DatasetError as error:
        print(error)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
