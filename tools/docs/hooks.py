"""What mkdocs calls while it builds the site: it adds the pages that are made from the code (mkdocs.yml)."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tools.docs.reference import pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages; they are never written into docs/."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
