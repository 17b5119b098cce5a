"""What rviz shows of a policy, as plain shapes: words, paths, the gripper's events, the workspace. No ROS.

Positions are metres in the base frame, colours RGBA from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dtvla.control.open_loop_executor import ControllerState
from dtvla.nodes.viewers.planned_paths import PlannedPath, PlannedPaths, box_edges, outside
from dtvla.nodes.viewers.reasoning_state import ReasoningState
from dtvla.policy.thought_text import drawable, lines

Vector = NDArray[np.float64]
Colour = tuple[float, float, float, float]

WHITE: Colour = (1.0, 1.0, 1.0, 1.0)
FAINT: Colour = (0.66, 0.70, 0.76, 1.0)
KEPT: Colour = (0.50, 0.78, 0.95, 1.0)  # words taken over from the thought before
GOOD: Colour = (0.38, 0.85, 0.48, 1.0)
CAREFUL: Colour = (1.0, 0.76, 0.25, 1.0)
BAD: Colour = (1.0, 0.42, 0.34, 1.0)
PATH: Colour = (0.10, 0.80, 1.0, 0.95)  # rviz blends a line only when its last point is not quite opaque
_STATES = {ControllerState.EXECUTING.value: GOOD, ControllerState.STOPPED.value: BAD}  # the others: CAREFUL

LINE_PITCH = 1.3  # from line to line, in letter heights
LATER_ALPHA = 0.3  # of rows that the next decision will replace
PAST_ALPHA = 0.8  # of the newest past path; older ones are fainter
BOX_ALPHA = 0.35
EVENT_M = 0.022
MOST_EVENTS = 4  # of one chunk
INSTRUCTION_LINES, COMPLAINT_LINES = 2, 4


class Kind(Enum):
    """Shapes, with the values of `visualization_msgs/Marker`."""

    BALL = 2
    PATH = 4  # a line through all points
    EDGES = 5  # a line per pair of points
    DOTS = 7
    WORDS = 9  # centred on their place, turned to the viewer


@dataclass(frozen=True)
class Sketch:
    """One shape; it replaces the one before with the same name and number.

    Attributes:
        name, number: who it is.
        kind: what it is.
        colour: of the whole shape, unless `colours` is given.
        size_m: height of letters, width of a line, diameter of balls and dots.
        points: [n, 3]; words and balls have one, their place.
        colours: [n, 4], one for each point.
        text: of words.
    """

    name: str
    number: int
    kind: Kind
    colour: Colour
    size_m: float
    points: Vector
    colours: Vector | None = None
    text: str = ""


@dataclass(frozen=True)
class Style:
    """Places and sizes that the user chooses.

    Attributes:
        board_m: [3] top middle of the words.
        letter_m: height of their letters.
        line_m: width of the newest path.
        columns, rows: most characters of a line, most lines of a thought.
        box_m: [2, 3] lowest and highest corner of the workspace.
        past_plans: how many past paths there can be.
    """

    board_m: Vector
    letter_m: float
    line_m: float
    columns: int
    rows: int
    box_m: Vector
    past_plans: int


def sketches(reasoning_state: ReasoningState, plans: PlannedPaths, style: Style) -> list[Sketch]:
    """Everything there is to show now. Names and numbers come from a fixed set, so rviz never grows."""
    leaves = any(outside(plan.points[: plan.executed + 1], style.box_m).any() for plan in list(plans)[:1])
    colour = CAREFUL if leaves else FAINT
    box = Sketch(
        "workspace", 0, Kind.EDGES, (*colour[:3], BOX_ALPHA), style.line_m / 3, box_edges(style.box_m)
    )
    found = [box, *board(reasoning_state, style, leaves=leaves)]
    for age, plan in enumerate(plans):
        found += _newest(plan, style) if age == 0 else _past(plan, age, style)
        found += _events(plan, age, style)
    return found


def board(reasoning_state: ReasoningState, style: Style, *, leaves: bool) -> list[Sketch]:
    """The words beside the arm, one shape per line: only so can lines have colours of their own."""
    found: list[Sketch] = []
    drop_m = 0.0
    for group in _paragraphs(reasoning_state, style, leaves):
        for name, number, text, colour in group:
            place = style.board_m - [0.0, 0.0, drop_m]
            found.append(
                Sketch(name, number, Kind.WORDS, colour, style.letter_m, place[None], text=drawable(text))
            )
            drop_m += LINE_PITCH * style.letter_m
        drop_m += 0.5 * style.letter_m if group else 0.0
    return found


def _paragraphs(
    reasoning_state: ReasoningState, style: Style, leaves: bool
) -> Iterator[list[tuple[str, int, str, Colour]]]:
    """Lines of the board as (name, number, text, colour), in paragraphs."""
    columns = style.columns
    order = lines(reasoning_state.instruction, columns, INSTRUCTION_LINES)
    yield [("instruction", number, line.text, FAINT) for number, line in enumerate(order)]
    thought = lines(reasoning_state.thought, columns, style.rows, reasoning_state.kept_from)
    yield [
        ("thought", number, line.text, KEPT if line.all_kept else WHITE)
        for number, line in enumerate(thought)
    ]
    about = [
        (reasoning_state.thought_line, KEPT if reasoning_state.kept else FAINT),
        (reasoning_state.decision_line, FAINT),
    ]
    yield [("decision", number, text, colour) for number, (text, colour) in enumerate(about) if text]
    state, complaint = reasoning_state.controller
    colour = BAD if complaint else _STATES.get(state, CAREFUL)
    words = [(line.text, colour) for line in lines(state or "no controller", columns, 2)]
    words += [(line.text, BAD) for line in lines(complaint, columns, COMPLAINT_LINES)]
    words += [("the plan leaves the workspace", CAREFUL)] if leaves else []
    yield [("controller", number, text, colour) for number, (text, colour) in enumerate(words)]


def _newest(plan: PlannedPath, style: Style) -> list[Sketch]:
    """The path bright as far as it is meant to be executed, with a dot per control period."""
    colours = np.tile(np.array(PATH), (len(plan.points), 1))
    colours[outside(plan.points, style.box_m), :3] = BAD[:3]
    colours[plan.executed + 1 :, 3] = LATER_ALPHA
    path = Sketch("path", 0, Kind.PATH, PATH, style.line_m, plan.points, colours)
    dots = Sketch("rows", 0, Kind.DOTS, PATH, 1.8 * style.line_m, plan.points[1:], colours[1:])
    return [path, dots]


def _past(plan: PlannedPath, age: int, style: Style) -> list[Sketch]:
    """The executed part of a past path, fainter the older it is."""
    colour = (*PATH[:3], fade(age, style.past_plans))
    return [Sketch("path", age, Kind.PATH, colour, 0.7 * style.line_m, plan.points[: plan.executed + 1])]


def fade(age: int, past: int) -> float:
    """Opacity of a path of `age` 1 (the newest past one) to `past`: falls in even steps, and not to 0."""
    return PAST_ALPHA * (past + 1 - age) / past


def _events(plan: PlannedPath, age: int, style: Style) -> list[Sketch]:
    """A ball and a word where the gripper begins to open or to close."""
    shown = [event for event in plan.events if age == 0 or event.row < plan.executed][:MOST_EVENTS]
    found: list[Sketch] = []
    for number, event in enumerate(shown, age * MOST_EVENTS):
        later = event.row >= plan.executed
        alpha = LATER_ALPHA if later else 1.0 if age == 0 else fade(age, style.past_plans)
        colour = (*(GOOD if event.opens else CAREFUL)[:3], alpha)
        place = plan.points[event.row][None]
        above = place + np.array([0.0, 0.0, EVENT_M + 0.5 * style.letter_m])
        text = "opens" if event.opens else "closes"
        found.append(Sketch("gripper", number, Kind.BALL, colour, EVENT_M, place))
        found.append(
            Sketch("gripper words", number, Kind.WORDS, colour, 0.8 * style.letter_m, above, text=text)
        )
    return found
