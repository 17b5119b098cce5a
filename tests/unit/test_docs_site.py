"""The site is built without a warning, says what the code says, and asks nothing of a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dtvla.nodes.common.parameters import SCHEMAS
from tools.docs import reference_commands, reference_python, reference_ros
from tools.docs.page_commands import page_files
from tools.docs.reference import pages

ROOT = Path(__file__).resolve().parents[2]
TERMS = re.compile(r"^\*\*(.+?)\*\*", re.MULTILINE)
MODULE = re.compile(r"`((?:dtvla|training|model_export|tools)\.[a-z][\w.]*\w)`")
FILE = re.compile(r"`((?:dtvla|training|model_export|tools|tests|docs|launch|urdf|config)/[\w./-]+)`")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; any warning of mkdocs is an error there."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "ros2_ws/src/dtvla"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class _Assets(HTMLParser):
    """What a page loads by itself: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(given.get("src") or "")
        if tag == "link" and given.get("rel") != "canonical":
            self.loaded.append(given.get("href") or "")


def loaded_by(page: Path) -> Iterator[str]:
    reader = _Assets()
    reader.feed(page.read_text())
    yield from reader.loaded


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    shown = sorted(site.rglob("*.html"))
    assert len(shown) > 40
    foreign = [
        f"{page.relative_to(site)}: {source}"
        for page in shown
        for source in loaded_by(page)
        if re.match(r"(\w+:)?//", source)
    ]
    assert foreign == []


def test_no_style_sheet_loads_anything_from_a_network(site: Path) -> None:
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", sheet.read_text()), sheet.name


def test_lists_and_tables_are_shown_as_such(site: Path) -> None:
    """Markdown takes a list for text where no empty line stands before it."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", page.read_text(), flags=re.DOTALL)
        assert re.findall(r"^(?:<p>)?(?:- |\| ).*", text, re.MULTILINE) == [], page.name


def test_every_generated_page_is_on_the_site(site: Path) -> None:
    for path in pages():
        assert (site / path).with_suffix(".html").is_file()


@pytest.mark.parametrize("path", page_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_files_that_a_page_names_exist(path: Path) -> None:
    text = path.read_text()
    missing = [name for name in MODULE.findall(text) if not _is_module_or_inside(name)]
    bases = (ROOT, ROOT / "ros2_ws/src/dtvla")
    missing += [name for name in FILE.findall(text) if not any((base / name).exists() for base in bases)]
    assert missing == []


def _is_module_or_inside(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something that a module of ours defines."""
    parts = name.split(".")
    base = ROOT / "ros2_ws/src/dtvla" if parts[0] == "dtvla" else ROOT
    for count in range(len(parts), 0, -1):
        place = base.joinpath(*parts[:count])
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if source.is_file():
            rest = parts[count : count + 1]
            words = source.read_text()
            return all(
                re.search(rf"\b(def|class) {inner}\b|^{inner}\b", words, re.MULTILINE) for inner in rest
            )
    return False


def test_the_reference_of_the_nodes_lists_every_parameter() -> None:
    text = reference_ros.nodes()
    for node, schema in SCHEMAS.items():
        section = text.split(f"### Parameters of {node}\n")[1].split("\n#")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [each.name for each in schema]


def test_the_reference_of_the_messages_lists_every_interface_and_field() -> None:
    text = reference_ros.messages()
    for path in sorted((ROOT / "ros2_ws/src/dtvla_msgs").glob("*/*.*")):
        assert f"### dtvla_msgs/{path.parent.name}/{path.stem}\n" in text
        fields = [line.split()[1] for line in path.read_text().splitlines() if line[:1].isalpha()]
        section = text.split(f"/{path.stem}\n")[1].split("\n#")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == fields


def test_the_reference_of_the_commands_names_every_command_and_option() -> None:
    text = reference_commands.runtime_commands()
    for words in ("## dtvla up", "## dtvla eval", "## dtvla bundle sign", "## dtvla security generate"):
        assert f"{words}\n" in text
    row = next(line for line in text.splitlines() if line.startswith("| `--chunk-mode`"))
    assert "one of `open_loop`, `receding`, `ensembled`" in row
    assert "| `open_loop` |" in row


def test_the_reference_of_the_bundle_says_what_every_field_is() -> None:
    rows = re.findall(r"^\| `\w+` \|.*\|$", reference_python.bundle(), re.MULTILINE)
    assert len(rows) > 40
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_reference_of_the_python_side_names_classes_with_signatures() -> None:
    text = reference_python.api()
    assert "### dtvla.policy.policy\n" in text
    assert "### dtvla.control.chunk_executor\n" in text
    assert "class `_" not in text


def test_the_terms_of_the_glossary_stand_in_alphabetical_order_in_one_line_each() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    terms = TERMS.findall(text)
    assert len(terms) > 40
    assert terms == sorted(terms, key=str.lower)
    assert [line for line in text.splitlines() if line and not line.startswith(("#", "**", "One line"))] == []
