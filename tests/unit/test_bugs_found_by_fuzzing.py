"""What tests/fuzz found, one test each: every one failed before it was mended."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from rich.console import Console

from dtvla.bringup.graph import GraphOptions
from dtvla.cli.common import task_numbers
from dtvla.errors import BundleError, PolicyInputError
from dtvla.evaluation.results import EvalOptions, begun_options, pack_actions, read_journal, unpack_actions
from dtvla.nodes.viewers.console_view import ConsoleState, thought_line
from dtvla.policy.backends.graph_signatures import check_decoder
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.prompt import clean_instruction, load_tokenizer
from dtvla.resources import resource
from dtvla.sim import assets
from dtvla.sim.bootstrap import SimulatorUnavailable
from dtvla.sim.suites.libero import read_arrays
from dtvla.sim.thoughts import parse_thought

SHIPPED = resource("bundles/embedded-int8")


def test_a_thought_with_a_number_of_hundreds_of_digits_states_no_place() -> None:
    """It raised OverflowError, in an evaluation of a model that writes such words."""
    assert parse_thought(f"The can is 1 cm left, 2 cm back, {'9' * 400} cm above.").offset is None


@pytest.mark.parametrize("key", ["cache_length", "thought_cap"])
def test_a_manifest_with_a_number_of_hundreds_of_digits_is_refused(key: str) -> None:
    """`math.isfinite` raised OverflowError."""
    data = json.loads((SHIPPED / "policy.json").read_text())
    with pytest.raises(BundleError):
        PolicySpec.from_json({**data, key: 10**400})
    with pytest.raises(BundleError):
        PolicySpec.from_json({**data, "control_period_s": 10**400})


def test_a_tokenizer_that_is_none_is_refused_in_a_sentence_without_escapes(tmp_path: Path) -> None:
    """The parser's words were passed on as they were, terminal escapes from the file included."""
    (tmp_path / "tokenizer.json").write_text('{"version": "\\u001b[2J"}')
    layout = PolicySpec.from_json(json.loads((SHIPPED / "policy.json").read_text())).layout
    with pytest.raises(ValueError, match="is not a tokenizer file") as caught:
        load_tokenizer(tmp_path / "tokenizer.json", layout)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith(".")


def test_the_console_does_not_pass_on_what_a_terminal_acts_on() -> None:
    """A thought from any node on the network could move the cursor or wipe the screen."""
    out = io.StringIO()
    Console(file=out).print(thought_line(ConsoleState(thought="\x1b[2J\x9b31m")), markup=False)
    assert not set(out.getvalue()) & set("\x1b\x9b")


def test_an_instruction_of_underscores_is_empty() -> None:
    """Underscores become blanks, but emptiness was asked for before that."""
    with pytest.raises(PolicyInputError, match="empty"):
        clean_instruction("__")


def test_a_range_of_tasks_beyond_any_suite_is_refused() -> None:
    """It was made into a list first: MemoryError."""
    with pytest.raises(ValueError, match="beyond any suite"):
        task_numbers("0-99999999999")


HEAD = {"options": {**asdict(EvalOptions("expert")), "tasks": []}, "fingerprint": "", "assets": "none needed"}


@pytest.mark.parametrize(
    "episode", [{"task": "0"}, {"task": 0}, ["task"], {"task": 0, "thoughts": None, "actions": 3}, None]
)
def test_a_record_whose_episodes_are_of_other_types_is_refused(tmp_path: Path, episode: object) -> None:
    """They were taken as they were, and failed far from here."""
    path = tmp_path / "episodes.jsonl"
    path.write_text(f"{json.dumps(HEAD)}\n{json.dumps(episode)}\n")
    with pytest.raises(ValueError, match="is no record of an evaluation"):
        read_journal(path)


@pytest.mark.parametrize(
    "change", [{"rials": 3}, {"episodes": "many"}, {"tasks": [0.5]}, {"backend": "best"}]
)
def test_an_evaluation_with_other_options_is_not_gone_on_with(
    tmp_path: Path, change: dict[str, object]
) -> None:
    """An option that is none ended in a TypeError."""
    head = {**HEAD, "options": {**HEAD["options"], **change}}  # type: ignore[dict-item]
    (tmp_path / "episodes.jsonl").write_text(json.dumps(head) + "\n")
    with pytest.raises(ValueError, match="are not those of an evaluation"):
        begun_options(tmp_path)


@pytest.mark.parametrize("packed", ["AAAA", "A", "é", "AAAAAAAA8H8=" * 7])
def test_damaged_actions_are_refused_in_a_sentence(packed: str) -> None:
    """numpy's and base64's own words came through, and numbers that are not finite."""
    with pytest.raises(ValueError, match=r"^The recorded actions (are damaged|hold numbers)"):
        unpack_actions(packed)


@pytest.mark.parametrize("content", [b"\x80\xff", b"", b"\x8a\xff", b"X\x01\x00\x00\x00\xff."])
def test_a_damaged_pickle_of_initial_states_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    """UnicodeDecodeError, OverflowError and others came through."""
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    with pytest.raises(ValueError, match=r"is not a file of initial states .*\.$"):
        read_arrays(tmp_path / "x")


def test_initial_states_that_would_fill_the_memory_are_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 27))
    with pytest.raises(ValueError, match="more than 67108864 bytes"):
        read_arrays(tmp_path / "x")


def test_an_archive_with_a_link_to_nothing_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """KeyError came through."""
    with tarfile.open(tmp_path / "pack.tar", "w") as tar:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.LNKTYPE, "nowhere"
        tar.addfile(link)
    with pytest.raises(SimulatorUnavailable, match=r"cannot be unpacked .*\.$"):
        assets._unpack(tmp_path / "pack.tar", tmp_path / "all", lambda share: None)


def test_a_graph_whose_output_has_no_axes_is_refused_in_words(
    random_bundle_path: Path, tmp_path: Path
) -> None:
    """Reading the size of its last axis raised IndexError."""
    layout = PolicySpec.from_json(json.loads((random_bundle_path / "policy.json").read_text())).layout
    session = ort.InferenceSession(str(random_bundle_path / "decoder.onnx"))
    check_decoder(session, tmp_path, layout)
    with pytest.raises(BundleError, match=r"features is a .* with 0 axes"):
        check_decoder(_Bare(session), tmp_path, layout)  # type: ignore[arg-type]


class _Bare:
    """A session whose `features` has lost its shape (ONNX Runtime itself would often refuse such a graph)."""

    def __init__(self, session: object) -> None:
        self._session = session

    def get_inputs(self) -> list[object]:
        found = self._session.get_inputs()  # type: ignore[attr-defined]
        return [
            SimpleNamespace(name=e.name, type=e.type, shape=[] if e.name == "features" else e.shape)
            for e in found
        ]

    def get_outputs(self) -> list[object]:
        return list(self._session.get_outputs())  # type: ignore[attr-defined]


def test_finite_actions_come_back_bit_for_bit() -> None:
    actions = np.random.default_rng(0).normal(size=(5, 7))
    assert (unpack_actions(pack_actions(list(actions))) == actions).all()


@pytest.mark.parametrize("option", [{"cameras": "0=0"}, {"cameras": "wrist=/a-b"}, {"namespace": "é"}])
def test_names_that_ros_does_not_take_are_refused_before_a_node_is_started_with_them(
    option: dict[str, str],
) -> None:
    """They reached the nodes' command lines as remappings, which ROS answers with a traceback."""
    with pytest.raises(ValueError, match="letters, digits and _ only"):
        GraphOptions(bundle=Path(), **option)  # type: ignore[arg-type]
