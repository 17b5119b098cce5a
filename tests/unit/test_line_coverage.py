"""The shares that `make test COVERAGE=1` prints."""

from __future__ import annotations

from tools.line_coverage import room, shares, table


def _file(executed: int, lines: int) -> dict[str, dict[str, int]]:
    return {"summary": {"covered_lines": executed, "num_statements": lines}}


def test_a_file_belongs_to_its_room_and_a_loose_one_to_its_package() -> None:
    assert room("ros2_ws/src/dtvla/dtvla/policy/bundle/loading.py") == "dtvla.policy"
    assert room("ros2_ws/src/dtvla/dtvla/errors.py") == "dtvla"
    assert room("training/rl/loop.py") == "training.rl"
    assert room("model_export/sample.py") == "model_export"


def test_shares_are_summed_by_room_with_the_total_at_the_end() -> None:
    files = {
        "ros2_ws/src/dtvla/dtvla/policy/a.py": _file(3, 4),
        "ros2_ws/src/dtvla/dtvla/policy/bundle/b.py": _file(1, 6),
        "training/collect.py": _file(0, 0),
    }
    assert list(shares(files).items()) == [
        ("dtvla.policy", (4, 10)),
        ("training", (0, 0)),
        ("total", (4, 10)),
    ]
    assert table(shares(files)).splitlines()[0].split() == [
        "dtvla.policy",
        "40.0",
        "%",
        "4",
        "of",
        "10",
        "lines",
    ]
