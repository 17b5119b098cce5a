"""A policy bundle: the directory that is deployed, verified as a whole before anything of it runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dtvla.errors import BundleError
from dtvla.policy.bundle.engine_files import Engine, read_engines
from dtvla.policy.bundle.onnx_files import external_files
from dtvla.policy.bundle.policy_spec import FILE, SIGNATURE, PolicySpec
from dtvla.policy.prompt import load_tokenizer, thought_ids

SEAL = "sha256"  # the field of policy.json that holds its own hash
BLANK = "0" * 64
GRAPHS = ("vision.onnx", "decoder.onnx")
REQUIRED = ("tokenizer.json", *GRAPHS)
MAX_MANIFEST_BYTES = 1 << 20  # of policy.json; a real one has 4 kB
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    `fingerprint` is the seal of policy.json, which holds all other hashes. `signer` names the trusted key
    that signed it; it is empty when none was asked for. `typical` are ids of the typical thoughts, with tags.
    """

    path: Path
    spec: PolicySpec
    tokenizer: Tokenizer
    files: Mapping[str, str]
    fingerprint: str
    engines: tuple[Engine, ...] = ()  # TensorRT engines for one machine or several
    signer: str = ""
    typical: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def load(cls, path: str | Path, trusted_key: str | Path = "") -> Bundle:
        """Reads a bundle and verifies every file, field and special token.

        Args:
            path: its folder.
            trusted_key: file of a public key (`bundle.signing`) that must have signed it; empty takes
                unsigned bundles too.

        Raises:
            BundleError: anything is missing, changed or unknown; the sentence names file and field.
            KeyFileError: the key cannot be read.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a policy bundle: no such directory.")
        manifest = folder / FILE
        if not manifest.is_file():
            raise BundleError(f"{folder} is not a policy bundle: it has no {FILE}.")
        raw = _read_bytes(manifest)
        signer = ""
        if str(trusted_key):
            from dtvla.policy.bundle.signing import verify  # who trusts any bundle needs no cryptography

            signer = verify(folder, raw, Path(trusted_key))
        data = _parse_manifest(manifest, raw)
        spec = PolicySpec.from_json(data)
        files = _read_files(data)
        engines = read_engines(data.get("engines", []), files)
        for name, digest in files.items():
            _verify(folder / name, digest)
        for name in GRAPHS:
            _check_weights(folder / name, files)
        tokenizer = _load_tokenizer(folder / "tokenizer.json", spec)
        typical = typical_ids(spec, tokenizer)
        return cls(folder, spec, tokenizer, files, data[SEAL], engines, signer, typical)


def write_bundle(path: str | Path, spec: PolicySpec, engines: Sequence[Engine] = ()) -> None:
    """Writes policy.json into a directory that already holds the other files, with all their hashes.

    A signature of an earlier policy.json is removed: it is void.

    Args:
        path: directory with tokenizer.json, vision.onnx, decoder.onnx and whatever else belongs to it.
        spec: what the policy is.
        engines: what the engine files among them are; a bundle without any has no such field.

    Raises:
        BundleError: a required file is missing, or the result would not load.
    """
    folder = Path(path)
    (folder / SIGNATURE).unlink(missing_ok=True)
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


def _read_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes; it is no {FILE} of a policy.")
    return raw


def _parse_manifest(path: Path, raw: bytes) -> dict[str, Any]:
    """Parses policy.json and verifies its seal: a flipped byte in it must not pass either."""
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON ({error}). Copy the bundle again.") from None
    if not isinstance(data, dict):
        raise BundleError(f"{path} must hold a JSON object. Copy the bundle again.")
    if SEAL not in data:
        raise BundleError(f"{FILE}: the field {SEAL} is missing.")
    seal = data[SEAL]
    if not isinstance(seal, str) or not _DIGEST.fullmatch(seal):
        raise BundleError(f"{path}: {SEAL} must be a SHA-256 in hex.")
    if hashlib.sha256(raw.replace(seal.encode(), BLANK.encode())).hexdigest() != seal:
        raise BundleError(
            f"{path} was changed after the bundle was written ({SEAL} does not match). "
            "Copy the bundle again, or export it anew with the values you want."
        )
    return data


def _read_files(data: dict[str, Any]) -> dict[str, str]:
    names = data["files"]
    if not isinstance(names, dict):
        raise BundleError(f"{FILE}: files must be a JSON object.")
    for name, digest in names.items():
        if not _NAME.fullmatch(name) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise BundleError(f"{FILE}: files maps plain file names to SHA-256 hashes; {name!a} is none.")
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


def _check_weights(graph: Path, files: Mapping[str, str]) -> None:
    """A graph may take weights only from files of the bundle that have a hash."""
    for location in sorted(external_files(graph)):
        if location not in files:
            raise BundleError(
                f"{graph} takes weights from {location!a}, which is no file of the bundle ({FILE}: files). "
                "Export the policy again."
            )


def _load_tokenizer(path: Path, spec: PolicySpec) -> Tokenizer:
    try:
        return load_tokenizer(path, spec.layout)
    except ValueError as error:
        raise BundleError(str(error)) from None


def typical_ids(spec: PolicySpec, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Ids of a policy's typical thoughts, with tags.

    Raises:
        BundleError: one of them holds more than words.
    """
    try:
        return tuple(thought_ids(tokenizer, spec.layout, words) for words in spec.typical_thoughts)
    except ValueError as error:
        raise BundleError(f"{FILE}: typical_thoughts: {error}. Export the policy again.") from None
