"""What was compared, how far it was off, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

LOGITS = 5e-4  # float32 against float64 alone differs by 1e-4
LOSS, GRADIENT = 1e-5, 1e-3  # relative
GAP = 1e-3  # ids are compared where the best value leads by more


@dataclass(frozen=True)
class ComparisonRow:
    """One comparison; `difference` is None where nothing was compared and `what` says why."""

    set: str
    case: str
    what: str
    difference: float | None
    tolerance: float
    passed: bool


@dataclass
class ConformanceReport:
    """Collects comparisons; `of` narrows it to one set and case."""

    rows: list[ComparisonRow] = field(default_factory=list)

    def of(self, set_name: str, case: str) -> Section:
        """The part of one case."""
        return Section(self, set_name, case)

    @property
    def failed(self) -> list[ComparisonRow]:
        """Comparisons out of tolerance."""
        return [row for row in self.rows if not row.passed]

    def table(self) -> Table:
        """All rows for the terminal."""
        table = Table("set", "case", "what", "max difference", "tolerance", "")
        for row in self.rows:
            shown = "-" if row.difference is None else f"{row.difference:.1e}"
            mark = "[green]ok[/green]" if row.passed else "[red]MISS[/red]"
            if row.difference is None and row.passed:
                mark = "[yellow]skipped[/yellow]"
            table.add_row(row.set, row.case, row.what, shown, f"{row.tolerance:.0e}", mark)
        return table


@dataclass(frozen=True)
class Section:
    """Adds comparisons of one case to a report."""

    report: ConformanceReport
    set_name: str
    case: str

    def _add(self, what: str, difference: float | None, tolerance: float, passed: bool) -> None:
        self.report.rows.append(ComparisonRow(self.set_name, self.case, what, difference, tolerance, passed))

    def close(
        self, what: str, found: ArrayLike, expected: ArrayLike, atol: float = 0.0, rtol: float = 0.0
    ) -> None:
        """Largest absolute difference against `atol + rtol * max |expected|`."""
        f, e = _array(found), _array(expected)
        if f.shape != e.shape:
            self._add(f"{what}: shape {list(f.shape)} instead of {list(e.shape)}", float("inf"), atol, False)
            return
        scale = float(np.abs(e).max()) if e.size else 0.0
        difference = float(np.abs(f.astype(np.float64) - e.astype(np.float64)).max()) if e.size else 0.0
        tolerance = atol + rtol * scale
        self._add(what, difference, tolerance, bool(difference <= tolerance))

    def equal(self, what: str, found: ArrayLike, expected: ArrayLike) -> None:
        """Elementwise equality; the difference is the number of elements that differ."""
        f, e = _array(found), _array(expected)
        wrong = float("inf") if f.shape != e.shape else float((f != e).sum())
        self._add(what, wrong, 0.0, wrong == 0)

    def same_ids(self, what: str, found: ArrayLike, expected: ArrayLike, gap: ArrayLike) -> None:
        """Equality wherever the best value leads by more than `GAP`."""
        clear = _array(gap) > GAP
        f, e = _array(found), _array(expected)
        if f.shape != e.shape or f.shape != clear.shape:
            self._add(what, float("inf"), 0.0, False)
            return
        self.equal(f"{what} ({int(clear.sum())} of {clear.size} clear)", f[clear], e[clear])

    def skip(self, why: str) -> None:
        """States that a case does not apply to this backend."""
        self._add(why, None, 0.0, True)

    def miss(self, why: str) -> None:
        """States that something could not be compared, which is a failure."""
        self._add(why, None, 0.0, False)


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)
