"""What rviz is shown, without rviz or ROS: words, paths, events, the workspace; and what is forgotten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_control_action_chunk import make_chunk

from dtvla.control.action_chunk import Chunk
from dtvla.nodes.viewers.marker_view import (
    BAD,
    CAREFUL,
    GOOD,
    KEPT,
    MOST_EVENTS,
    WHITE,
    Kind,
    Sketch,
    Style,
    fade,
    sketches,
)
from dtvla.nodes.viewers.planned_paths import (
    MeasuredTrack,
    PlannedPaths,
    box_edges,
    gripper_events,
    outside,
    planned_path,
)
from dtvla.nodes.viewers.reasoning_state import CONTROLLER_TIMEOUT_S, ReasoningState
from dtvla.policy.thought_text import drawable, kept_words, lines

BOX = np.array([[0.15, -0.55, -0.02], [0.8, 0.55, 0.8]])
START = np.array([0.4, 0.0, 0.3])
STYLE = Style(np.array([0.2, -0.9, 1.0]), 0.04, 0.006, 36, 12, BOX, past_plans=3)
texts = st.text(st.characters(codec="utf-8"), max_size=300)


def chunk(number: int, *, openings: list[float] | None = None, step_m: float = 0.001) -> Chunk:
    """Ten rows of which five are executed, each a step along x."""
    return replace(
        make_chunk(number * 250_000_000, decision_id=number),
        translations=np.tile([step_m, 0.0, 0.0], (10, 1)),
        gripper_openings=np.array(openings or [0.08] * 10),
    )


def heard(
    text: str = "The can is here.", *, decision: int = 1, kept: int = 0, now_s: float = 0.0
) -> ReasoningState:
    reasoning_state = ReasoningState()
    reasoning_state.on_instruction("Pick up the can")
    think(reasoning_state, text, decision=decision, kept=kept, now_s=now_s)
    reasoning_state.on_decision(decision, "Pick up the can", 42.0, now_s)
    return reasoning_state


def think(
    reasoning_state: ReasoningState, text: str, *, decision: int, kept: int = 0, now_s: float = 0.0
) -> None:
    reasoning_state.on_thought(
        decision, text, now_s, tokens=len(text.split()), kept=kept, finished=True, truncated=False
    )


def show(reasoning_state: ReasoningState, *chunks: Chunk) -> list[Sketch]:
    plans = PlannedPaths(STYLE.past_plans, 0.04)
    for each in chunks:
        plans.add(each, START)
    return sketches(reasoning_state, plans, STYLE)


def named(found: list[Sketch], name: str) -> list[Sketch]:
    return [sketch for sketch in found if sketch.name == name]


# --- words


def test_kept_words_are_those_that_stood_in_the_thought_before() -> None:
    before, now = "The can is 12 cm left. Next: move over it.", "The can is 4 cm left. Next: move over it."
    assert [word for word, kept in zip(now.split(), kept_words(before, now), strict=True) if not kept] == [
        "4"
    ]
    assert not any(kept_words("", now))


@given(before=texts, now=texts)
def test_kept_words_stand_in_both_thoughts_in_one_order(before: str, now: str) -> None:
    flags = kept_words(before, now)
    assert len(flags) == len(now.split())
    rest = iter(before.split())
    assert all(word in rest for word, kept in zip(now.split(), flags, strict=True) if kept)
    assert all(kept_words(now, now))


@given(text=texts, columns=st.integers(4, 60))
def test_lines_hold_every_letter_and_no_line_is_too_long(text: str, columns: int) -> None:
    found = lines(text, columns, most=1000)
    assert all(len(line.text) <= columns for line in found)
    assert "".join(word for line in found for word in line.words) == "".join(text.split())
    assert all(len(line.words) == len(line.kept) > 0 for line in found)


@given(text=texts, columns=st.integers(4, 60), most=st.integers(1, 5))
def test_what_does_not_fit_ends_with_an_ellipsis(text: str, columns: int, most: int) -> None:
    whole, found = lines(text, columns, most=1000), lines(text, columns, most)
    assert len(found) == min(most, len(whole))
    assert all(len(line.text) <= columns for line in found)
    assert len(whole) <= most or found[-1].words[-1] == "..."


def test_paragraphs_of_a_thought_begin_on_lines_of_their_own() -> None:
    assert [line.text for line in lines("One two\n\nthree", 30, 9)] == ["One two", "three"]


@given(text=texts)
def test_rviz_only_gets_letters_it_can_draw(text: str) -> None:
    assert all(" " <= letter <= "~" or letter == "\n" for letter in drawable(text))


def test_accents_are_dropped_and_other_scripts_become_question_marks() -> None:
    assert drawable("Größe: café 取") == "Gro?e: cafe ?"


def test_an_accent_without_its_letter_is_a_question_mark_and_not_an_empty_line() -> None:
    """Found by the property test of the board: a complaint of nothing but an accent had no text at all."""
    assert [drawable(text) for text in ("\u0300", "\u0300\u0301", "a \u0300", "")] == ["?", "?", "a ?", ""]


# --- what was said


def test_another_instruction_voids_the_thought_and_so_does_the_same_one_said_again() -> None:
    for words in ("Push the block", "Pick up the can"):
        reasoning_state = heard()
        chapter = reasoning_state.chapter
        reasoning_state.on_instruction(words)
        assert (reasoning_state.thought, reasoning_state.decision_line, reasoning_state.chapter) == (
            "",
            "",
            chapter + 1,
        )
        assert reasoning_state.instruction == words


def test_an_instruction_that_only_the_chunk_names_begins_a_chapter_and_keeps_its_own_thought() -> None:
    reasoning_state = heard()
    chapter = reasoning_state.chapter
    think(reasoning_state, "The block is left.", decision=2)
    reasoning_state.on_decision(2, "Push the block", 40.0, 0.0)
    assert (reasoning_state.instruction, reasoning_state.thought, reasoning_state.chapter) == (
        "Push the block",
        "The block is left.",
        chapter + 1,
    )
    assert reasoning_state.kept_from == ""
    reasoning_state.on_decision(3, "Push the can", 40.0, 0.0)
    assert reasoning_state.thought == ""


def test_a_silent_policy_is_forgotten_and_a_speaking_one_is_not() -> None:
    reasoning_state = heard(now_s=10.0)
    reasoning_state.look_at_clock(10.0 + reasoning_state.silence_s)
    assert reasoning_state.thought
    reasoning_state.look_at_clock(10.1 + reasoning_state.silence_s)
    assert (reasoning_state.thought, reasoning_state.thought_line, reasoning_state.instruction) == (
        "",
        "",
        "Pick up the can",
    )
    chapter = reasoning_state.chapter
    reasoning_state.look_at_clock(1000.0)
    assert reasoning_state.chapter == chapter  # there is nothing more to forget


def test_words_are_compared_with_the_last_finished_thought() -> None:
    reasoning_state = heard("The can is 12 cm left.", decision=1)
    reasoning_state.on_thought(2, "The", 0.0, tokens=1, kept=1, finished=False, truncated=False)
    assert reasoning_state.kept_from == "The can is 12 cm left."
    assert reasoning_state.thought_line == "thinking: 1 tokens, 1 kept"
    think(reasoning_state, "The can is 4 cm left.", decision=3, kept=6)  # the second was given up
    assert reasoning_state.kept_from == "The can is 12 cm left."
    think(reasoning_state, "The can is 3 cm left.", decision=4, kept=0)
    assert reasoning_state.kept_from == ""  # every word was generated anew


def test_a_controller_that_does_not_report_has_no_state() -> None:
    reasoning_state = ReasoningState()
    reasoning_state.on_controller("executing", "", 5.0)
    reasoning_state.look_at_clock(5.0 + CONTROLLER_TIMEOUT_S)
    assert reasoning_state.controller == ("executing", "")
    reasoning_state.look_at_clock(5.1 + CONTROLLER_TIMEOUT_S)
    assert reasoning_state.controller == ("", "")


# --- paths


@given(
    moves=st.lists(st.tuples(*[st.floats(-0.05, 0.05)] * 3), min_size=1, max_size=30),
    start=st.tuples(*[st.floats(-1, 1)] * 3),
)
def test_a_path_begins_at_the_gripper_and_ends_after_all_moves(
    moves: list[tuple[float, ...]], start: tuple[float, ...]
) -> None:
    path = planned_path(np.array(start), np.array(moves))
    assert path.shape == (len(moves) + 1, 3)
    np.testing.assert_array_equal(path[0], start)
    np.testing.assert_allclose(np.diff(path, axis=0), moves, atol=1e-12)


@given(is_open=st.lists(st.booleans(), min_size=1, max_size=20), before=st.booleans())
def test_events_turn_the_gripper_from_what_it_was_into_what_it_becomes(
    is_open: list[bool], before: bool
) -> None:
    events = gripper_events(np.array(is_open), before)
    state, replayed = before, []
    changes = {event.row: event.opens for event in events}
    for row in range(len(is_open)):
        assert changes.get(row, not state) != state  # no event without a change
        state = changes.get(row, state)
        replayed.append(state)
    assert replayed == is_open


def test_a_path_begins_where_the_gripper_was_when_the_picture_was_taken() -> None:
    track = MeasuredTrack()
    assert track.at(0) is None
    for tick in range(5):
        track.add(tick * 50_000_000, np.full(3, float(tick)))
    assert track.at(149_000_000)[0] == 3.0
    assert track.at(-5)[0] == 0.0
    assert track.at(10**12)[0] == 4.0
    track.add(10_000_000, np.full(3, 9.0))  # the clock was set back
    assert track.at(200_000_000)[0] == 9.0


def test_a_fast_robot_does_not_fill_the_track() -> None:
    track = MeasuredTrack()
    for tick in range(100_000):
        track.add(tick * 1_000_000, np.full(3, float(tick)))
    assert track.at(99_999_000_000)[0] == pytest.approx(99_990)
    assert track.at(95_000_000_000)[0] == pytest.approx(95_000)  # five seconds ago is still known


def test_a_chunk_sent_again_is_one_plan() -> None:
    found = show(heard(), chunk(1), chunk(1), chunk(2), chunk(2))
    assert len(named(found, "path")) == 2


def test_the_rows_that_the_next_decision_replaces_are_faint() -> None:
    (path,) = named(show(heard(), chunk(1)), "path")
    alphas = path.colours[:, 3]
    assert len(path.points) == 11
    assert (alphas[:6] > 0.9).all()
    assert (alphas[6:] < 0.5).all()
    assert path.colours[-1, 3] < 0.998  # else rviz draws the whole line opaque
    (rows,) = named(show(heard(), chunk(1)), "rows")
    assert len(rows.points) == 10


@given(past=st.integers(1, 50))
def test_past_paths_fade_evenly_and_stay_visible(past: int) -> None:
    alphas = [fade(age, past) for age in range(1, past + 1)]
    assert all(0 < alpha < 1 for alpha in alphas)
    np.testing.assert_allclose(np.diff(alphas), alphas[-1] * -1, atol=1e-12)


def test_past_paths_show_what_was_executed_and_the_oldest_goes() -> None:
    paths = named(show(heard(), *(chunk(number) for number in range(1, 9))), "path")
    assert [path.number for path in paths] == [0, 1, 2, 3]  # one new, three past
    assert [len(path.points) for path in paths] == [11, 6, 6, 6]
    alphas = [path.colour[3] for path in paths]
    assert alphas == sorted(alphas, reverse=True)


def test_gripper_events_carry_words_and_fade_with_their_path() -> None:
    closing = chunk(2, openings=[0.08] * 3 + [0.0] * 7)
    later = chunk(2, openings=[0.08] * 7 + [0.0] * 3)
    (word,) = named(show(heard(), chunk(1), closing), "gripper words")
    (ball,) = named(show(heard(), chunk(1), closing), "gripper")
    assert (word.text, ball.colour) == ("closes", CAREFUL)
    np.testing.assert_allclose(ball.points[0], START + np.array([0.003, 0, 0]))
    assert named(show(heard(), chunk(1), later), "gripper")[0].colour[3] < 0.5
    after = [chunk(3, openings=[0.0] * 10), chunk(4, openings=[0.0] * 10)]
    (past,) = named(show(heard(), closing, *after), "gripper")
    assert past.colour[3] == fade(2, STYLE.past_plans)
    assert not named(show(heard(), later, chunk(3)), "gripper")  # it was not executed, and is not any more
    opened = show(heard(), chunk(1, openings=[0.0] * 10), chunk(2))
    assert [(s.text, s.colour) for s in named(opened, "gripper words")] == [("opens", GOOD)]


def test_a_box_has_twelve_edges_along_its_axes() -> None:
    edges = box_edges(BOX).reshape(12, 2, 3)
    lengths = np.sort(np.abs(edges[:, 0] - edges[:, 1]).max(axis=1))
    np.testing.assert_allclose(lengths, np.sort(np.repeat(BOX[1] - BOX[0], 4)))
    assert ((edges[:, 0] != edges[:, 1]).sum(axis=1) == 1).all()
    assert len({tuple(sorted(map(tuple, edge))) for edge in edges.tolist()}) == 12


def test_a_plan_that_leaves_the_workspace_is_red_where_it_does_and_said() -> None:
    found = show(heard(), chunk(1, step_m=0.09))
    (path,) = named(found, "path")
    red = (path.colours[:, :3] == BAD[:3]).all(axis=1)
    np.testing.assert_array_equal(red, outside(path.points, BOX))
    assert red[5]
    assert not red[4]
    assert any(sketch.text == "the plan leaves the workspace" for sketch in found)
    assert named(found, "workspace")[0].colour[:3] == CAREFUL[:3]
    only_later = show(heard(), chunk(1, step_m=0.07))  # rows that will not be executed
    assert not any(sketch.text == "the plan leaves the workspace" for sketch in only_later)


# --- all of it


def test_the_board_says_what_is_followed_thought_and_done() -> None:
    reasoning_state = heard("The can is 12 cm left. Next: move over it.")
    think(reasoning_state, "The can is 4 cm left. Next: move over it.", decision=2, kept=9)
    reasoning_state.on_decision(2, "Pick up the can", 37.2, 0.0)
    reasoning_state.on_controller("executing", "", 0.0)
    found = show(reasoning_state)
    said_words = [sketch.text for sketch in found if sketch.kind is Kind.WORDS]
    assert said_words == [
        "Pick up the can",
        "The can is 4 cm left. Next: move",
        "over it.",
        "10 tokens, 9 kept",
        "decision 2, 37 ms",
        "executing",
    ]
    thought = named(found, "thought")
    assert [sketch.colour for sketch in thought] == [WHITE, KEPT]  # the "4" is new
    heights = [sketch.points[0, 2] for sketch in found if sketch.kind is Kind.WORDS]
    assert (np.diff(heights) < -0.04).all()


def test_a_complaint_of_the_controller_is_red_and_no_controller_is_said() -> None:
    assert [s.text for s in named(show(ReasoningState()), "controller")] == ["no controller"]
    reasoning_state = ReasoningState()
    reasoning_state.on_controller(
        "stopped: /clear_stop releases the arm", "The arm is stopped and holds.", 0.0
    )
    words = named(show(reasoning_state), "controller")
    assert [sketch.text for sketch in words] == [
        "stopped: /clear_stop releases the",
        "arm",
        "The arm is stopped and holds.",
    ]
    assert {sketch.colour for sketch in words} == {BAD}


@given(data=st.data())
def test_rviz_never_grows_and_never_sees_a_name_twice(data: st.DataObject) -> None:
    plans, keys = PlannedPaths(STYLE.past_plans, 0.04), set()
    reasoning_state = ReasoningState()
    reasoning_state.on_instruction(data.draw(texts))
    for number in range(1, data.draw(st.integers(1, 12))):
        openings = data.draw(st.lists(st.floats(0, 0.08), min_size=10, max_size=10))
        plans.add(chunk(number, openings=openings, step_m=data.draw(st.floats(-0.1, 0.1))), START)
        think(reasoning_state, data.draw(texts), decision=number, kept=data.draw(st.integers(0, 3)))
        reasoning_state.on_controller(data.draw(texts), data.draw(texts), 0.0)
        found = sketches(reasoning_state, plans, STYLE)
        names = [(sketch.name, sketch.number) for sketch in found]
        assert len(set(names)) == len(names)
        assert all(np.isfinite(sketch.points).all() for sketch in found)
        assert all(sketch.text for sketch in found if sketch.kind is Kind.WORDS)
        keys |= set(names)
    per_plan = 1 + 2 * MOST_EVENTS
    board = 2 + STYLE.rows + 2 + (2 + 4 + 1)
    assert len(keys) <= 1 + board + 1 + per_plan * (STYLE.past_plans + 1)
