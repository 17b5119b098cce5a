"""Which row of a chunk answers a tick."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.control.action_chunk import Chunk, row_at

PERIOD_NS = 50_000_000
START_NS = 1_790_000_000_000_000_000


def make_chunk(stamp_ns: int = START_NS, *, decision_id: int = 1, rows: int = 10, execute: int = 5) -> Chunk:
    return Chunk(
        decision_id=decision_id,
        stamp_ns=stamp_ns,
        period_ns=PERIOD_NS,
        execute_steps=execute,
        translations=np.zeros((rows, 3)),
        rotations=np.zeros((rows, 3)),
        gripper_openings=np.full(rows, 0.08),
        raw_actions=np.zeros((rows, 7)),
    )


@pytest.mark.parametrize(
    ("offset_ns", "row"),
    [
        (0, 0),
        (PERIOD_NS, 1),
        (4 * PERIOD_NS, 4),
        (5 * PERIOD_NS, None),  # used up: the next decision is due
        (-PERIOD_NS, None),  # before its own image
        (PERIOD_NS // 2 - 1, 0),
        (PERIOD_NS // 2, 1),
        (-PERIOD_NS // 2, 0),
        (-PERIOD_NS // 2 - 1, None),
    ],
)
def test_a_tick_takes_the_nearest_row(offset_ns: int, row: int | None) -> None:
    assert row_at(make_chunk(), START_NS + offset_ns) == row


@given(st.integers(0, 4), st.integers(-PERIOD_NS // 2 + 1, PERIOD_NS // 2 - 1))
def test_jitter_below_half_a_period_does_not_change_the_row(row: int, jitter_ns: int) -> None:
    assert row_at(make_chunk(), START_NS + row * PERIOD_NS + jitter_ns) == row


@given(st.integers(-(10**18), 10**18))
def test_no_tick_ever_gets_a_row_that_is_not_to_be_executed(offset_ns: int) -> None:
    row = row_at(make_chunk(), START_NS + offset_ns)
    assert row is None or 0 <= row < 5


def test_a_chunk_expires_when_its_last_row_has_had_its_time() -> None:
    chunk = make_chunk()
    assert row_at(chunk, chunk.expires_ns) is None
    assert row_at(chunk, chunk.expires_ns - PERIOD_NS) == 4
