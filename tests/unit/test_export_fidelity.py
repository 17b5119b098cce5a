"""docs/fidelity.md names tests that pin its lines: they must exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_fidelity_table_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")))
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    assert len(named) > 25
    assert named <= defined, sorted(named - defined)
