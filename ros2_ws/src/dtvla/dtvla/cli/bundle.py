"""The commands around policy bundles: `dtvla bundle check`, `keygen` and `sign`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from dtvla.cli.common import OK, console

bundles = SubcommandApp()


@bundles.command
def check(path: Positional[Path], trust: Path | None = None) -> int:
    """Verify a policy bundle: every file, hash, field and shape, and its signature when --trust names a key.

    Args:
        path: Folder of the bundle.
        trust: Public key that must have signed it (the file *.pub that keygen wrote).
    """
    from dtvla.errors import plain
    from dtvla.policy.policy import Policy

    bundle = Policy.load(path, trusted_key=trust or "").bundle
    spec = bundle.spec
    cameras = ", ".join(camera.name for camera in spec.cameras)
    console.print(f"[green]{path} is whole.[/]")
    console.print(f"  fingerprint  {bundle.fingerprint}", highlight=False)
    signed = f"yes, by {trust} ({bundle.signer})" if bundle.signer else _unchecked(path)
    console.print(f"  signed       {signed}", highlight=False, markup=False)
    console.print(f"  cameras      {cameras}; the policy sees {spec.image.size}x{spec.image.size} px")
    console.print(
        f"  actions      {spec.layout.horizon} rows of {spec.control_period_s:g} s, "
        f"{spec.execute_steps} executed per decision"
    )
    console.print(f"  thoughts     at most {spec.thought_cap} tokens")
    for name, value in spec.provenance.items():
        console.print(f"  {plain(name)}: {plain(value)}", highlight=False, markup=False)
    return OK


@bundles.command
def keygen(key: Positional[Path]) -> int:
    """Make a key pair to sign bundles with: the private key KEY (only you can read it) and KEY.pub.

    Args:
        key: File of the private key; it must not exist.
    """
    from dtvla.policy.bundle.signing import make_keys

    public = make_keys(key)
    console.print(f"Private key: {key}  (keep it where you export; no robot needs it)", soft_wrap=True)
    console.print(f"Public key:  {public}  (the policy node's parameter trusted_key)", soft_wrap=True)
    return OK


@bundles.command(name="sign")
def sign_bundle(path: Positional[Path], key: Path) -> int:
    """Verify a bundle and sign it: 64 bytes over policy.json, which holds the hash of every other file.

    Args:
        path: Folder of the bundle.
        key: Private key that keygen wrote.
    """
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.policy.bundle.signing import sign

    bundle = Bundle.load(path)
    signature = sign(path, key)
    console.print(f"{signature} signs the bundle {bundle.fingerprint[:12]}.", soft_wrap=True, highlight=False)
    console.print(f"Try it: dtvla bundle check {path} --trust {key}.pub", soft_wrap=True, highlight=False)
    return OK


def _unchecked(path: Path) -> str:
    from dtvla.policy.bundle.policy_spec import SIGNATURE

    return "not checked (--trust names the key)" if (path / SIGNATURE).is_file() else "no"
