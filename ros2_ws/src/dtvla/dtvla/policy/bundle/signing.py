"""Signed bundles: Ed25519 (RFC 8032) over the exact bytes of policy.json, which holds all files' SHA-256.

The signature is 64 bytes in a file beside policy.json. Keys are PEM files (PKCS #8 and SubjectPublicKeyInfo),
so OpenSSL can make and check both (docs/security.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from dtvla.errors import BundleError, InputError
from dtvla.policy.bundle.policy_spec import FILE, SIGNATURE

PUBLIC_SUFFIX = ".pub"
_OWNER_ONLY = 0o600
_OTHERS = 0o077
_SIGNATURE_BYTES = 64
_MAX_KEY_BYTES = 1 << 16


class KeyFileError(InputError):
    """A key file that cannot be used; the message names it."""


def make_keys(path: Path) -> Path:
    """Writes a new private key (PEM, mode 0600) and its public key beside it; returns the latter's path.

    Raises:
        KeyFileError: one of the files exists, or cannot be written.
    """
    public_path = path.with_name(path.name + PUBLIC_SUFFIX)
    for taken in (path, public_path):
        if taken.exists() or taken.is_symlink():
            raise KeyFileError(
                f"{taken} exists already, and a key is never overwritten. Choose another name."
            )
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        _create(path, private, _OWNER_ONLY)
        _create(public_path, public, 0o644)
    except OSError as error:
        raise KeyFileError(f"The key {path} cannot be written: {error.strerror}.") from None
    return public_path


def sign(folder: Path, key_file: Path) -> Path:
    """Signs the policy.json of a bundle (verify the bundle before); returns the signature's path.

    Raises:
        KeyFileError: the file holds no Ed25519 private key, or others may read it.
    """
    key = _private_key(key_file)
    path = folder / SIGNATURE
    part = path.with_suffix(".part")
    part.write_bytes(key.sign((folder / FILE).read_bytes()))
    part.replace(path)
    return path


def verify(folder: Path, manifest: bytes, trusted: Path) -> str:
    """Checks that the owner of a public key has signed a bundle's policy.json; returns the key's name.

    Args:
        folder: of the bundle.
        manifest: the bytes of its policy.json.
        trusted: file of the public key.

    Raises:
        KeyFileError: the file holds no Ed25519 public key.
        BundleError: the bundle is not signed, or not with this key.
    """
    key = _public_key(trusted)
    path = folder / SIGNATURE
    if not path.is_file():
        raise BundleError(
            f"The bundle {folder} is not signed (it has no {SIGNATURE}), and only bundles signed with "
            f"{trusted} are taken. Sign it: dtvla bundle sign {folder} --key KEY."
        )
    if path.stat().st_size != _SIGNATURE_BYTES:
        raise BundleError(f"{path} is no Ed25519 signature: it must have {_SIGNATURE_BYTES} bytes.")
    try:
        key.verify(path.read_bytes(), manifest)
    except InvalidSignature:
        raise BundleError(
            f"The bundle {folder} is not signed with {trusted} ({key_name(key)}), or its {FILE} was changed "
            "afterwards. Copy the bundle again, or name the public key of whoever signed it."
        ) from None
    return key_name(key)


def key_name(key: Ed25519PublicKey) -> str:
    """A public key in short: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"key {hashlib.sha256(raw).hexdigest()[:16]}"


def _create(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that must not exist, with its mode from the first moment on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _private_key(path: Path) -> Ed25519PrivateKey:
    content = _read(path)
    mode = path.stat().st_mode
    if mode & _OTHERS:
        raise KeyFileError(f"Others may read the private key {path}. Take that away first: chmod 600 {path}.")
    key = None
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load_pem_private_key(content, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(
            f"{path} holds no Ed25519 private key in PEM without a password. "
            "Make one: dtvla bundle keygen KEY."
        )
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    content = _read(path)
    if b"PRIVATE KEY" in content:
        raise KeyFileError(
            f"{path} holds a private key; a robot needs the public one only ({path.name}{PUBLIC_SUFFIX})."
        )
    key = None
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        key = load_pem_public_key(content)
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(
            f"{path} holds no Ed25519 public key in PEM; "
            f"it is the file *{PUBLIC_SUFFIX} that dtvla bundle keygen wrote."
        )
    return key


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise KeyFileError(f"There is no key file {path}.")
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be read: {error.strerror}.") from None
