"""Success rates and their uncertainty: intervals of one rate and of a difference, and a test of pairs."""

from __future__ import annotations

import math

Z_95 = 1.96  # of 95 % intervals, as in all results on record


def wilson(successes: float, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's interval of a success rate. Returns (low, high); (0, 1) without trials.

    By hand, not by `scipy.stats.binomtest(...).proportion_ci`: the gate asks for fractions of successes (the
    recorded rate of fewer episodes), which scipy refuses, and every table of results needs the interval
    without the second that importing scipy.stats takes. A test compares both.
    """
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """The p-value of McNemar's exact test, two-sided: 1 when nothing changed.

    It asks whether the pairs that changed went one way more often than a fair coin would.

    Args:
        only_a: pairs that only the first solved.
        only_b: pairs that only the second solved.
    """
    from scipy.stats import binomtest  # takes a second: only who compares pays for it

    changed = only_a + only_b
    return float(binomtest(only_b, changed, 0.5).pvalue) if changed else 1.0


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of the rate of B less that of A, of pairs; (-1, 1) without pairs.

    Newcombe, Statistics in Medicine 17, 1998, pages 2635-2650, method 10: from Wilson's intervals and the
    correlation of the pairs. scipy has none for pairs.
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return -1.0, 1.0
    wins_a, wins_b = both + only_a, both + only_b
    (low_a, high_a), (low_b, high_b) = wilson(wins_a, n), wilson(wins_b, n)
    rate_a, rate_b = wins_a / n, wins_b / n
    phi = _correlation(both, only_a, only_b, neither)
    down = _combined(rate_b - low_b, high_a - rate_a, phi)
    up = _combined(high_b - rate_b, rate_a - low_a, phi)
    difference = (only_b - only_a) / n
    return max(-1.0, difference - down), min(1.0, difference + up)


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Of the pairs, shrunk by half a count as in Newcombe's method 10; 0 where it has no value."""
    n = both + only_a + only_b + neither
    wins_a, wins_b = both + only_a, both + only_b
    spread = wins_a * (n - wins_a) * wins_b * (n - wins_b)
    if spread == 0:
        return 0.0
    cross = both * neither - only_a * only_b
    if cross > 0:
        cross = max(cross - n // 2, 0)
    return cross / math.sqrt(spread)


def _combined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))
