"""A policy bundle: the directory that is deployed, verified as a whole before anything of it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dtvla.policy.engines import Engine, read_engines
from dtvla.policy.errors import BundleError
from dtvla.policy.prompt import load_tokenizer
from dtvla.policy.spec import FILE, Fields, PolicySpec

SEAL = "sha256"  # the field of policy.json that holds its own hash
BLANK = "0" * 64
REQUIRED = ("tokenizer.json", "vision.onnx", "decoder.onnx")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `fingerprint` is the seal of policy.json, which holds all other hashes."""

    path: Path
    spec: PolicySpec
    tokenizer: Tokenizer
    files: Mapping[str, str]
    fingerprint: str
    engines: tuple[Engine, ...] = ()  # TensorRT engines for one machine or several

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Reads a bundle and verifies every file, field and special token.

        Raises:
            BundleError: anything is missing, changed or unknown; the sentence names file and field.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a policy bundle: no such directory.")
        manifest = folder / FILE
        if not manifest.is_file():
            raise BundleError(f"{folder} is not a policy bundle: it has no {FILE}.")
        data = _read_manifest(manifest)
        spec = PolicySpec.from_json(data)
        files = _read_files(data)
        engines = read_engines(data.get("engines", []), files)
        for name, digest in files.items():
            _verify(folder / name, digest)
        tokenizer = _load_tokenizer(folder / "tokenizer.json", spec)
        return cls(folder, spec, tokenizer, files, data[SEAL], engines)


def write_bundle(path: str | Path, spec: PolicySpec, engines: Sequence[Engine] = ()) -> None:
    """Writes policy.json into a directory that already holds the other files, with all their hashes.

    Args:
        path: directory with tokenizer.json, vision.onnx, decoder.onnx and whatever else belongs to it.
        spec: what the policy is.
        engines: what the engine files among them are; a bundle without any has no such field.

    Raises:
        BundleError: a required file is missing, or the result would not load.
    """
    folder = Path(path)
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != FILE)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise BundleError(f"{folder} lacks {missing[0]}; a bundle cannot be written without it.")
    data = spec.to_json()
    data["files"] = {name: file_digest(folder / name) for name in names}
    if engines:
        data["engines"] = [engine.to_json() for engine in engines]
    (folder / FILE).write_bytes(sealed(data))
    Bundle.load(folder)


def sealed(data: dict[str, Any]) -> bytes:
    """policy.json with its own SHA-256 in it, taken over the file with zeros in the seal's place."""
    text = json.dumps({**data, SEAL: BLANK}, indent=2, ensure_ascii=False) + "\n"
    blank = text.encode("utf-8")
    return blank.replace(BLANK.encode(), hashlib.sha256(blank).hexdigest().encode())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """Parses policy.json and verifies its seal: a flipped byte in it must not pass either."""
    raw = path.read_bytes()
    try:
        data = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON ({error}). Copy the bundle again.") from None
    seal = Fields(data, "").take(SEAL)
    if not isinstance(seal, str) or len(seal) != len(BLANK):
        raise BundleError(f"{path}: {SEAL} must be a SHA-256 in hex.")
    if hashlib.sha256(raw.replace(seal.encode(), BLANK.encode())).hexdigest() != seal:
        raise BundleError(
            f"{path} was changed after the bundle was written ({SEAL} does not match). "
            "Copy the bundle again, or export it anew with the values you want."
        )
    return dict(data)


def _read_files(data: dict[str, Any]) -> dict[str, str]:
    fields = Fields(data["files"], "files")
    names = fields.rest()
    for name, digest in names.items():
        if Path(name).name != name or not isinstance(digest, str):
            raise BundleError(f"{FILE}: files maps plain file names to SHA-256 hashes; {name!r} is none.")
    for name in REQUIRED:
        if name not in names:
            raise BundleError(f"{FILE}: the field files.{name} is missing.")
    return names


def _verify(path: Path, digest: str) -> None:
    if not path.is_file():
        raise BundleError(f"The bundle's file {path} is missing. Copy the bundle again.")
    found = file_digest(path)
    if found != digest:
        raise BundleError(
            f"{path} is not the file this bundle was made with: its SHA-256 begins {found[:12]}, "
            f"{FILE} says {digest[:12]}. Copy the bundle again, or export it anew if you changed it."
        )


def _load_tokenizer(path: Path, spec: PolicySpec) -> Tokenizer:
    try:
        return load_tokenizer(path, spec.layout)
    except ValueError as error:
        raise BundleError(str(error)) from None
