"""Deployment runtime for DeepThinkVLA policies: see, think aloud, move the arm."""

import re
from pathlib import Path


def _version(manifest: Path) -> str:
    """The version stands in package.xml and nowhere else. setup.py writes it from there into the metadata of
    what is installed, and only those are at hand where the package runs without its source.
    """
    if not manifest.is_file():
        from importlib import metadata  # 30 ms that a checkout need not wait

        return metadata.version("dtvla")
    found = re.search(r"<version>([^<]+)</version>", manifest.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{manifest} has no <version>. Restore it: git checkout {manifest}")
    return found.group(1)


__version__ = _version(Path(__file__).resolve().parents[1] / "package.xml")
