"""Gives a finished bundle typical thoughts: an episode's first thought then costs six passes, not forty.

    python -m model_export.typical BUNDLE --episodes data/embedded     # in place

The export itself does so with `--calibrate`. Drafts change no word and no action
(`dtvla.policy.draft_lookup`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import tyro
from rich.console import Console
from tyro.conf import Positional

from dtvla.errors import BundleError
from dtvla.policy.bundle.loading import Bundle, write_bundle
from model_export.bundle import new_bundle
from model_export.errors import ExportError
from model_export.typical_thoughts import with_typical


def add_typical(bundle: Path, episodes: Path) -> int:
    """Gives a bundle the typical thoughts of recorded episodes, in place of those it had; returns how many.

    Raises:
        BundleError: the bundle must not be run.
        ExportError: there are no episodes.
    """
    source = Bundle.load(bundle)
    spec = with_typical(source.spec, source.tokenizer, episodes)
    with new_bundle(bundle) as folder:
        for name in source.files:
            shutil.copy(bundle / name, folder)
        write_bundle(folder, spec, source.engines)
    return len(spec.typical_thoughts)


def main(bundle: Positional[Path], episodes: Path) -> int:
    """Adds typical thoughts to a bundle; returns the exit code.

    Args:
        bundle: its folder; a signature is void afterwards and removed.
        episodes: folder of `python -m training.collect`.
    """
    try:
        count = add_typical(bundle, episodes)
    except (BundleError, ExportError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    Console().print(f"{bundle}: {count} typical thoughts", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main, description=__doc__))
