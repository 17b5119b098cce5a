"""Words from anywhere, a model's own included: read as what they say, shown as they are, or refused."""

from __future__ import annotations

import importlib.util
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, in_words
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer

from dtvla.bringup.graph import GraphOptions
from dtvla.bringup.sros2 import RobotSite, policy, remappings
from dtvla.cli.common import task_numbers
from dtvla.errors import InputError, PolicyInputError, plain
from dtvla.nodes.viewers.console_view import ConsoleState, episode_line, panel, thought_line
from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.prompt import clean_instruction, prompt_ids
from dtvla.resources import resource
from dtvla.sim.expert.scripted_expert import Phase
from dtvla.sim.perturbations.perturbation import Variation
from dtvla.sim.suites.embedded import TASKS
from dtvla.sim.thoughts import describe_next, describe_offset, parse_thought

SHIPPED = resource("bundles/embedded-int8")
TOKENIZER = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
LAYOUT = PolicySpec.from_json(json.loads((SHIPPED / "policy.json").read_text())).layout
PIECES = [
    "The ",
    "the ",
    "can",
    " is ",
    "12 cm left, ",
    "3 cm forward, ",
    "9" * 400 + " cm above",
    "Next: ",
    "lift it",
    ".",
    "٣ cm left, ",
]
# What a shell can pass; the command line shows its own errors through `plain`.
typed = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=12)
thoughts = st.one_of(st.text(max_size=120), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@fuzz(300)
@given(text=thoughts)
def test_a_thought_is_read_back_as_finite_numbers_and_a_known_phase_or_as_nothing(text: str) -> None:
    parsed = parse_thought(text)
    assert parsed.phase is None or isinstance(parsed.phase, Phase)
    if parsed.offset is not None:
        assert parsed.offset.shape == (3,)
        assert np.isfinite(parsed.offset).all()


@fuzz(100)
@given(
    offset=st.tuples(*[st.floats(-2, 2)] * 3),
    noun=st.sampled_from([t.noun for t in TASKS]),
    phase=st.sampled_from(sorted(Phase, key=str)),
)
def test_what_a_thought_states_is_read_back_to_the_centimetre(
    offset: tuple[float, float, float], noun: str, phase: Phase
) -> None:
    where = describe_offset(np.array(offset))
    parsed = parse_thought(f"The {noun} is {where}. Next: {describe_next(phase)}.")
    assert parsed.noun == noun
    assert parsed.phase is phase
    assert parsed.offset is not None
    assert np.abs(parsed.offset - offset).max() <= 0.0051


@fuzz(200)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from(["pick ", "<think>", "<image>", "</action>", "<eos>", "\n"])).map("".join),
    )
)
def test_an_instruction_becomes_a_prompt_without_any_tag_or_is_refused(text: str) -> None:
    ids = in_words(lambda: prompt_ids(TOKENIZER, LAYOUT, text), PolicyInputError)
    if ids is None:
        return
    pictures = LAYOUT.images * LAYOUT.image_tokens
    assert (ids[:pictures] == LAYOUT.image).all()
    assert tags(ids) == tags(prompt_ids(TOKENIZER, LAYOUT, "Pick up the can"))  # the prefix speaks of them
    assert tuple(ids[-2:]) == LAYOUT.prompt_end
    assert clean_instruction(text).strip()


def tags(ids: NDArray[np.int64]) -> list[int]:
    return [i for i in ids.tolist() if i in LAYOUT.special_ids().values()]


@fuzz(200)
@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    shift=st.integers(0, 1),
    bins=st.integers(3, 3000),
)
def test_ids_decode_to_values_between_minus_one_and_one_or_are_refused(
    ids: list[int], shift: int, bins: int
) -> None:
    codec = ActionTokenizer(bins, 100, shift)
    values = in_words(lambda: codec.decode(np.array(ids, np.int64)), InputError)
    if values is not None:
        assert all(100 <= i < 100 + bins for i in ids)
        assert (np.abs(values) <= 1.0).all()


@fuzz(200)
@given(values=st.lists(st.floats(), max_size=20), bins=st.integers(3, 3000))
def test_values_encode_to_action_ids_or_are_refused(values: list[float], bins: int) -> None:
    codec = ActionTokenizer(bins, 100)
    ids = in_words(lambda: codec.encode(values), InputError)
    if ids is not None:
        assert ((ids >= 100) & (ids < 100 + bins)).all()


@fuzz(200)
@given(
    stats=st.dictionaries(
        st.sampled_from(["q01", "q99", "mask", "x"]),
        st.one_of(
            st.none(),
            st.lists(st.one_of(st.floats(), st.booleans(), st.text(max_size=2)), min_size=6, max_size=8),
        ),
    )
)
def test_statistics_are_a_normaliser_or_refused(stats: dict[str, object]) -> None:
    normaliser = in_words(lambda: Normaliser.from_stats(stats, 7), InputError)
    if normaliser is not None:
        assert (normaliser.q99[normaliser.mask] > normaliser.q01[normaliser.mask]).all()


@fuzz(150)
@given(words=st.text(max_size=12, alphabet="0123456789-, x") | typed)
def test_task_numbers_are_read_or_refused(words: str) -> None:
    found = in_words(lambda: task_numbers(words), InputError)
    assert found is None or all(number >= 0 for number in found)


def test_a_range_of_tasks_beyond_any_suite_does_not_fill_the_memory() -> None:
    assert in_words(lambda: task_numbers("0-99999999999"), InputError) is None


@fuzz(150)
@given(
    words=typed
    | st.lists(st.sampled_from(["light", "=", ",", "camera", ":", "1", "nan", "1e400"])).map("".join)
)
def test_a_variation_is_one_that_exists_or_refused(words: str) -> None:
    in_words(lambda: Variation.parse(words), InputError)


@fuzz(150)
@given(
    cameras=typed | st.lists(st.sampled_from(["wrist", "=", "/a/b", ","])).map("".join),
    namespace=typed,
)
def test_options_of_the_graph_are_what_ros_takes_or_refused(cameras: str, namespace: str) -> None:
    options = in_words(lambda: GraphOptions(bundle=Path(), cameras=cameras, namespace=namespace), InputError)
    if options is not None:
        assert all(name.isidentifier() for name in options.camera_topics())


@fuzz(150)
@given(
    names=st.lists(typed, max_size=2),
    words=st.lists(typed | st.just("a:=/b"), max_size=2),
)
def test_a_security_policy_is_sound_xml_or_refused(names: list[str], words: list[str]) -> None:
    found = in_words(lambda: policy(RobotSite(robots=tuple(names), remappings=remappings(words))), InputError)
    if found is not None:
        ET.fromstring(found)


@fuzz(100)
@given(text=st.text(max_size=200))
def test_words_are_shown_without_what_a_terminal_acts_on(text: str) -> None:
    assert plain(text).isprintable() or not plain(text)
    plain(text).encode()


@fuzz(60)
@given(
    words=st.text(max_size=80) | st.sampled_from(["\x1b[2J", "[red]", "[/x]", "\x9b31m"]),
    width=st.integers(1, 200),
)
def test_the_console_shows_any_words_and_lets_none_act_on_the_terminal(words: str, width: int) -> None:
    scene = ConsoleState(
        task=words, instruction=words, thought=words, episode=1, problems={"policy_node": words}
    )
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(panel(scene, width))
    for line in (thought_line(scene), episode_line(scene)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    assert not set(out.getvalue()) & set("\x1b\x9b\x07\0")


@pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None,
    reason="launch_ros comes with a ROS installation, not from PyPI",
)
@pytest.mark.parametrize("name", ["task", "seed", "realtime", "max_steps", "robot", "output"])
@fuzz(60)
@given(text=st.text(max_size=12) | st.sampled_from(["1" * 5000, "true", "٣", "\ud800"]))
def test_launch_arguments_are_of_their_type_or_refused(name: str, text: str) -> None:
    from dtvla.bringup.launch_description import parse_option

    value = in_words(lambda: parse_option(name, text), InputError)
    assert (
        value is None
        or type(value) is type(getattr(GraphOptions(bundle=Path()), name))
        or isinstance(value, Path)
    )
