"""Structured files become dataclasses of the right types, or a sentence that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from dtvla.structured import Count, FieldError, Finite, Positive, matching, one_of, read, within


class Span(NamedTuple):
    low: int
    high: int


RISING = Span(0, 1)


@dataclass(frozen=True)
class Arm:
    name: str
    joints: Count = 7
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if self.name == "nobody":
            raise ValueError("An arm needs a name.")


@dataclass(frozen=True)
class Cell:
    arms: Annotated[tuple[Arm, ...], Meta(min_length=1)]
    reach_m: Positive = 1.0
    offset_m: Finite = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)
    map: Path | None = None
    delay: float | Literal["measured"] | None = None
    colour: Annotated[str, one_of("red", "blue")] = "red"
    version: Annotated[str, matching(r"\d+\.\d+", "such as 9.0")] = "1.0"
    size: tuple[int, int] = (1, 2)
    span: Annotated[Span, Meta(description="two rising whole numbers")] = RISING
    level: Annotated[int, Meta(ge=2, le=10)] = 2
    on: bool = True


ARMS = [{"name": "left"}]


def test_lists_become_tuples_words_paths_and_whole_numbers_numbers() -> None:
    data = {"arms": ARMS, "reach_m": 2, "map": "a/b", "delay": "measured", "size": [3, 4], "span": [1, 5]}
    cell = read(Cell, data)
    assert cell == Cell((Arm("left"),), 2.0, map=Path("a/b"), delay="measured", size=(3, 4), span=Span(1, 5))
    assert isinstance(cell.reach_m, float)


def test_defaults_are_the_instances_own() -> None:
    """msgspec leaves them to the class: `vars` of what it makes lacks every field that the file left out."""
    cell = read(Cell, {"arms": ARMS})
    assert vars(cell) == vars(Cell((Arm("left"),)))
    assert vars(cell.arms[0]) == vars(Arm("left"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"arms": []}, "arms must be a list with at least 1 entry, not []."),
        ({"arms": {}}, "arms must be a list with at least 1 entry, not {}."),
        ({"arms": ["left"]}, "arms[0] must be an object with named fields, not 'left'."),
        ({"arms": [{}]}, "the field arms[0].name is missing."),
        ({"arms": [*ARMS, {"name": "right", "joints": 0}]}, "arms[1].joints is 0; it must be 1 or more."),
        (
            {"arms": [{"name": "left", "mode": "idle"}]},
            "arms[0].mode is 'idle'; it must be one of fast, slow.",
        ),
        ({"arms": [{"name": "nobody"}]}, "arms[0]: An arm needs a name."),
        (
            {"arms": [{"name": "left", "joint": 7}]},
            "unknown field arms[0].joint. Did you mean arms[0].joints?",
        ),
        ({"x\x1b\ud800": 1}, r"unknown field x\x1b\ud800."),
        ({"reach_m": 0}, "reach_m is 0; it must be above 0."),
        ({"reach_m": True}, "reach_m is True; it must be a number, above 0."),
        ({"offset_m": float("nan")}, "offset_m is nan; it must be finite."),
        ({"shares": {"a": 1, "b": "much"}}, "shares.b is 'much'; it must be a number."),
        ({"map": 3}, "map is 3; it must be a path."),
        ({"delay": "later"}, "delay is 'later'; it must be a number or measured."),
        ({"colour": "green"}, "colour is 'green'; it must be one of red, blue."),
        ({"version": "1.0\n"}, r"version is '1.0\n'; it must be such as 9.0."),
        ({"size": [1]}, "size must be a list of 2, not [1]."),
        ({"size": [1, True]}, "size[1] is True; it must be a whole number."),
        ({"span": [1, "2"]}, "span is [1, '2']; it must be two rising whole numbers."),
        ({"level": 11}, "level is 11; it must be 2 to 10."),
        ({"level": 3.0}, "level is 3.0; it must be a whole number, 2 to 10."),
        ({"on": 1}, "on is 1; it must be true or false."),
    ],
)
def test_a_wrong_field_is_named_with_what_came_and_what_was_expected(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(FieldError) as error:
        read(Cell, {"arms": ARMS, **change})
    assert str(error.value) == sentence


@pytest.mark.parametrize("data", [None, [], "words", 3])
def test_a_file_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(FieldError, match=r"^the file (must be|is) .*an object with named fields"):
        read(Cell, data)


def test_a_path_within_the_file_stands_before_the_fields() -> None:
    with pytest.raises(FieldError, match=r"^robots\.arms\[1\]\.name is 3"):
        read(tuple[Arm, ...], [*ARMS, {"name": 3}], "robots.arms")


def test_unknown_fields_are_left_out_and_defaults_refused_where_that_is_asked_for() -> None:
    assert read(Arm, {"name": "left", "colour": "red"}, others=True) == Arm("left")
    with pytest.raises(FieldError, match=r"^the field arms\[0\]\.joints is missing"):
        read(tuple[Arm, ...], ARMS, "arms", complete=True)


def test_a_number_that_is_too_long_to_print_is_cut() -> None:
    with pytest.raises(FieldError) as error:
        read(Cell, {"arms": ARMS, "reach_m": 10**400})
    assert len(str(error.value)) < 200


def test_a_bound_that_another_field_sets_is_told_in_the_same_words() -> None:
    within("level", 3, 1, 3)
    with pytest.raises(FieldError, match=r"^level is 4; it must be 1 to 3\.$"):
        within("level", 4, 1, 3)
    with pytest.raises(FieldError, match=r"^level is 0; it must be 1 or more\.$"):
        within("level", 0, 1)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(Cell.__dataclass_fields__)), values)
def test_any_value_is_taken_or_refused_in_a_sentence_that_can_be_printed(name: str, value: Any) -> None:
    sentence = refused({"arms": ARMS, name: value})
    if sentence:
        assert name in sentence
        assert sentence.endswith(".")
        assert sentence.isprintable()
        sentence.encode()


def refused(data: dict[str, Any]) -> str:
    """What a cell is refused with; empty when it is taken."""
    try:
        read(Cell, data)
    except FieldError as error:
        return str(error)
    return ""
