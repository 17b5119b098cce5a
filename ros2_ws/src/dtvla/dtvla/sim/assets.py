"""LIBERO's assets: where they are, how they get there, and what results made with them must say.

The meshes and textures of the LIBERO suites are not in the hf-libero wheel. They come from the hub, where
hf-libero itself looks for them, or from a folder or archive that the user names. Only what `dtvla assets
fetch` took from the hub counts as the benchmark's own; everything else is labelled as a stand-in, because
looks and masses may differ. The embedded suite needs none of this.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dtvla.errors import plain
from dtvla.sim.bootstrap import SimulatorUnavailable, cache_folder, import_libero, write_atomically

VARIABLE = "DTVLA_ASSETS"
PARTS = (
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "turbosquid_objects",
)
RECORD = "dtvla_assets.json"  # beside the assets; written by `install`
CURRENT = "current"  # names the folder that is used when `DTVLA_ASSETS` is not set
HUB, STAND_IN = "hub", "stand-in"
NAMED = f"`dtvla assets fetch --assets PATH` with a folder or tar archive, or the variable {VARIABLE}"
NOT_NEEDED = "The suite 'embedded' needs none."
REMEDY = f"Get them with `dtvla assets fetch` (network), or use {NAMED}. {NOT_NEEDED}"
OnProgress = Callable[[float], None]  # the share that is done, 0 to 1


@dataclass(frozen=True)
class Assets:
    """A folder of assets. `digest` is over the names and contents of all its files."""

    folder: Path
    origin: str  # `HUB` or `STAND_IN`
    source: str  # the dataset or the file it was made of
    digest: str
    files: int

    @property
    def label(self) -> str:
        """What a result made with them says: `hub assets <digest>` or `stand-in assets (...)`."""
        short = self.digest[:12]
        return f"hub assets {short}" if self.origin == HUB else f"stand-in assets ({self.source}, {short})"


def find() -> Path:
    """The folder of LIBERO's assets: `DTVLA_ASSETS` (a folder, or an archive that is unpacked once), else
    what `dtvla assets fetch` left in the cache.

    Raises:
        SimulatorUnavailable: there are none, or they are not whole; the sentence says what to do.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        return _whole(_as_folder(Path(named).expanduser()), f"named by {VARIABLE}")
    pointer = _home() / CURRENT
    if not pointer.is_file():
        raise SimulatorUnavailable(f"The suites of LIBERO need its assets, which are not here. {REMEDY}")
    return _whole(_home() / pointer.read_text().strip(), f"named by {pointer}")


def describe(folder: Path | None = None) -> Assets:
    """What a folder of assets is (default: the one `find` finds); reads every file (half a second).

    Raises:
        SimulatorUnavailable: there are none.
    """
    folder = folder or find()
    digest, files = _digest(folder)
    try:
        record = json.loads((folder / RECORD).read_text())
        origin, source, recorded = (str(record[key]) for key in ("origin", "source", "digest"))
    except FileNotFoundError:
        return Assets(folder, STAND_IN, f"folder {folder.name}", digest, files)
    except (ValueError, KeyError, TypeError):
        return Assets(folder, STAND_IN, f"folder {folder.name} with a damaged {RECORD}", digest, files)
    if recorded != digest:  # then nobody knows any more what they are
        return Assets(folder, STAND_IN, f"{source}, changed since", digest, files)
    return Assets(folder, origin, source, digest, files)


def label() -> str:
    """The line that every result made with the present assets carries; see `Assets.label`."""
    return describe().label


def install(source: Path | None = None, on_progress: OnProgress = lambda share: None) -> Assets:
    """Makes assets the ones that are used: those of `source` (folder or tar archive), or the hub's.

    Raises:
        SimulatorUnavailable: the hub cannot be reached, or `source` holds no assets.
    """
    folder = _from_hub(on_progress) if source is None else _as_folder(source.expanduser(), on_progress)
    _whole(folder, "just fetched")
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    inside = folder.parent == home
    write_atomically(home / CURRENT, f"{folder.name if inside else folder.resolve()}\n")
    on_progress(1.0)
    return describe(folder)


def _home() -> Path:
    return cache_folder() / "assets"


def _whole(folder: Path, where: str) -> Path:
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise SimulatorUnavailable(
            f"The assets in {folder} ({where}) are not whole: no {', '.join(missing)}. {REMEDY}"
        )
    return folder


def _digest(folder: Path) -> tuple[str, int]:
    """SHA-256 over the sorted names and hashes of a folder's files, and their number."""
    total, files = hashlib.sha256(), 0
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != RECORD and not name.startswith("."):
            total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
            files += 1
    return total.hexdigest(), files


def _as_folder(path: Path, on_progress: OnProgress = lambda share: None) -> Path:
    """`path` itself, or the folder in the cache that an archive was unpacked to."""
    if path.is_dir():
        return path
    if not path.is_file():
        raise SimulatorUnavailable(f"No assets at {path}: no such file or folder. {REMEDY}")
    name = f"pack-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    folder = _home() / name
    if not folder.is_dir():
        _home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=_home()) as part:
            _unpack(path, Path(part) / "all", on_progress)
            _settle(_top(Path(part) / "all"), folder, STAND_IN, path.name)
    return folder


def _unpack(archive: Path, folder: Path, on_progress: OnProgress) -> None:
    """Unpacks a tar archive; no member may lie, or link, outside the folder."""
    size = archive.stat().st_size
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
            for member in tar:
                tar.extract(member, folder, filter="data")
                on_progress(raw.tell() / size)
    except tarfile.FilterError as error:
        raise SimulatorUnavailable(
            f"{archive} is not trusted and was not unpacked ({plain(error)}). Pack the assets again, with "
            "nothing but files and folders."
        ) from error
    except Exception as error:  # a damaged archive raises many kinds
        raise SimulatorUnavailable(
            f"{archive} cannot be unpacked ({plain(error)}). Copy it again, or pack it anew."
        ) from error


def _top(folder: Path) -> Path:
    """Where the assets begin: archives often wrap everything in one folder."""
    inner = list(folder.iterdir())
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else folder


def _settle(part: Path, folder: Path, origin: str, source: str) -> None:
    """Writes the record and moves a finished folder to its place, whole or not at all."""
    _whole(part, f"from {source}")
    digest, files = _digest(part)
    record = asdict(Assets(folder, origin, source, digest, files)) | {"folder": folder.name}
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster with the same files
            raise


def _from_hub(on_progress: OnProgress) -> Path:
    """Downloads the dataset that hf-libero names; what an interrupted try has got is kept for the next."""
    import_libero()
    try:
        # The library comes with tokenizers. hf-libero's own download function passes it an argument that
        # its present version refuses, so only the dataset's name is taken from there.
        dataset: str = importlib.import_module("libero.libero.utils.download_utils").HF_ASSETS_REPO_ID
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise SimulatorUnavailable(
            f"Fetching from the hub needs the package {error.name}. {REMEDY}"
        ) from error
    part = _home() / ".part-hub"
    part.mkdir(parents=True, exist_ok=True)
    try:
        hub.snapshot_download(repo_id=dataset, repo_type="dataset", local_dir=str(part))
    except Exception as error:  # its kinds differ by version: network, proxy, quota, disk
        why = " ".join([f"{type(error).__name__}:", *str(error).strip().splitlines()[:1]])
        raise SimulatorUnavailable(
            f"The dataset {dataset} could not be fetched ({why}). Try again with a network (what was fetched "
            f"is kept), or use {NAMED}. {NOT_NEEDED}"
        ) from error
    on_progress(0.9)
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the hub's bookkeeping
    folder = _home() / f"hub-{_digest(part)[0][:12]}"
    _settle(part, folder, HUB, dataset)
    shutil.rmtree(part, ignore_errors=True)  # there only if these very files had been fetched before
    return folder
