"""A signed bundle is taken only when the trusted key signed exactly this policy.json."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from dtvla.errors import BundleError
from dtvla.policy.bundle.loading import Bundle, sealed, write_bundle
from dtvla.policy.bundle.policy_spec import SIGNATURE
from dtvla.policy.bundle.signing import KeyFileError, make_keys, sign
from dtvla.policy.policy import Policy


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_keys(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def bundle(random_bundle_path: Path, tmp_path: Path) -> Path:
    """A copy that a test may sign and break."""
    return Path(shutil.copytree(random_bundle_path, tmp_path / "bundle"))


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def test_a_signed_bundle_loads_with_its_key_and_names_it(bundle: Path, key: Path) -> None:
    sign(bundle, key)
    assert Bundle.load(bundle, public(key)).signer.startswith("key ")
    assert (
        Policy.load(bundle, trusted_key=public(key)).bundle.signer == Bundle.load(bundle, public(key)).signer
    )


def test_without_a_key_unsigned_and_signed_bundles_are_taken(bundle: Path, key: Path) -> None:
    assert Bundle.load(bundle).signer == ""
    sign(bundle, key)
    assert Bundle.load(bundle).signer == ""


def test_an_unsigned_bundle_is_refused_by_who_trusts_a_key(bundle: Path, key: Path) -> None:
    with pytest.raises(BundleError, match=r"is not signed \(it has no policy\.json\.sig\).*bundle sign"):
        Bundle.load(bundle, public(key))


def test_a_signature_of_another_key_is_refused(bundle: Path, key: Path, tmp_path: Path) -> None:
    sign(bundle, key)
    other = make_keys(tmp_path / "other")
    with pytest.raises(BundleError, match=r"is not signed with .*other\.pub"):
        Bundle.load(bundle, other)


def test_a_bundle_that_was_changed_and_sealed_again_is_refused(bundle: Path, key: Path) -> None:
    """The seal alone guards against accidents only: whoever changes a file can make a new one."""
    sign(bundle, key)
    manifest = bundle / "policy.json"
    data = json.loads(manifest.read_text())
    data["execute_steps"] = 1
    manifest.write_bytes(sealed(data))
    Bundle.load(bundle)
    with pytest.raises(BundleError, match=r"or its policy\.json was changed afterwards"):
        Bundle.load(bundle, public(key))


def test_a_file_swapped_under_a_signed_manifest_is_refused(bundle: Path, key: Path) -> None:
    sign(bundle, key)
    graph = bundle / "vision.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"vision\.onnx is not the file this bundle was made with"):
        Bundle.load(bundle, public(key))


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\0" * 63, b"\0" * 5000])
def test_a_damaged_signature_is_refused_in_words(bundle: Path, key: Path, content: bytes) -> None:
    (bundle / SIGNATURE).write_bytes(content)
    with pytest.raises(BundleError, match=r"is no Ed25519 signature|is not signed with"):
        Bundle.load(bundle, public(key))


def test_writing_a_bundle_anew_removes_its_void_signature(bundle: Path, key: Path) -> None:
    sign(bundle, key)
    write_bundle(bundle, Bundle.load(bundle).spec)
    assert not (bundle / SIGNATURE).exists()
    assert SIGNATURE not in Bundle.load(bundle).files


def test_a_private_key_is_readable_by_its_owner_only_and_is_never_overwritten(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    for taken in (key, public(key)):
        with pytest.raises(KeyFileError, match="exists already"):
            make_keys(key)
        assert taken.exists()
    key.rename(key.with_name("moved"))
    with pytest.raises(KeyFileError, match=r"key\.pub exists already"):
        make_keys(key)
    assert key.with_name("moved").read_bytes() == before


def test_a_private_key_that_others_may_read_is_not_used(bundle: Path, key: Path) -> None:
    key.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        sign(bundle, key)


def test_a_file_that_holds_no_usable_key_is_refused_in_words(bundle: Path, key: Path, tmp_path: Path) -> None:
    sign(bundle, key)
    wrong = tmp_path / "wrong"
    ellipse = generate_private_key(SECP256R1())
    locked = load_pem_private_key(key.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    plain = ellipse.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"\xff\xfe", public(key).read_bytes(), locked, plain):
        wrong.write_bytes(content)
        wrong.chmod(0o600)
        with pytest.raises(KeyFileError, match=r"wrong holds no Ed25519 private key"):
            sign(bundle, wrong)
    other = ellipse.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for content in (b"", b"\xff\xfe", other):
        wrong.write_bytes(content)
        with pytest.raises(KeyFileError, match="wrong holds no Ed25519 public key"):
            Bundle.load(bundle, wrong)
    with pytest.raises(KeyFileError, match=r"holds a private key; a robot needs the public one"):
        Bundle.load(bundle, key)
    with pytest.raises(KeyFileError, match="There is no key file"):
        Bundle.load(bundle, tmp_path / "nowhere")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees_with_the_signature(bundle: Path, key: Path) -> None:
    signature = sign(bundle, key)
    line = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public(key), "-rawin"]
    line += ["-in", bundle / "policy.json", "-sigfile", signature]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "Signature Verified Successfully"), done.stderr
