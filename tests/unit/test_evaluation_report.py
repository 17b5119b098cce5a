"""The report of an evaluation: one safe, small page on its own, and videos that are the recorded episodes."""

from __future__ import annotations

import base64
import gzip
import io
import json
import multiprocessing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dtvla.cli.evaluate import success_tables
from dtvla.evaluation.report.episode_replay import FINAL_FRAMES, choose, file_of, replay_episodes, thought_at
from dtvla.evaluation.report.report import command, packed_thoughts, write_report
from dtvla.evaluation.results import (
    OUTCOMES,
    EpisodeResult,
    EvalOptions,
    Journal,
    failed,
    pack_actions,
    unpack_actions,
    write_results,
)
from dtvla.evaluation.runner import evaluate

OPTIONS = EvalOptions("random", episodes=3)
SOLVED = EpisodeResult(
    *(0, "green_block", 10_000, True, 20, 2, 30.0, 1.0, 1.0, ("go left", "go right"), OUTCOMES[0]),
    actions=pack_actions([np.zeros(7)]),
    decided_at=(0, 5),
)
FAILED = replace(SOLVED, seed=10_001, success=False, outcome=OUTCOMES[1])


class Elements(HTMLParser):
    """Collects what a page is made of, and that its tags close in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def reported(folder: Path, results: list[EpisodeResult], options: EvalOptions = OPTIONS) -> str:
    journal = Journal(folder, options)
    for result in results:
        if not result.error:
            journal.add(result)
    write_results(folder / "results.json", options, results)
    return write_report(folder).read_text()


def unpacked(text: str) -> dict[str, list[list[object]]]:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_the_page_is_well_formed_and_asks_nothing_of_a_network(tmp_path: Path) -> None:
    text = reported(tmp_path, [SOLVED, FAILED, failed(1, 10_000, "the worker died", "can")])
    page = Elements(text)
    assert page.open == []
    assert not {"link", "img", "iframe"} & {tag for tag, _ in page.found}
    assert not [attributes for _, attributes in page.found if {"src", "href"} & set(attributes)]
    assert "http" not in text
    assert "@import" not in text


def test_the_page_says_what_was_evaluated_and_how_it_went(tmp_path: Path) -> None:
    options = replace(OPTIONS, variation="camera:1")
    text = reported(tmp_path, [SOLVED, FAILED, failed(1, 10_000, "the worker died", "can")], options)
    for words in ("random on embedded", "1 of 2 episodes solved", "50 %", OUTCOMES[1], "none needed"):
        assert words in text
    assert "9 to 91 %" in text  # Wilson's interval of 1 in 2
    assert "1 episodes could not be run to their end" in text
    assert "dtvla eval --policy random --episodes 3 --variation camera:1" in text
    kinds = [attributes.get("data-kind") for tag, attributes in Elements(text).found if tag == "tr"]
    assert [kind for kind in kinds if kind] == ["solved", "failed", "error"]


def test_stand_in_assets_and_an_end_that_was_not_reached_are_said_at_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dtvla.evaluation.results.assets_label", lambda suite: "LIBERO's assets, 5 stand-in files"
    )
    Journal(tmp_path, OPTIONS).add(SOLVED)
    text = write_report(tmp_path).read_text()
    assert "not comparable with published ones" in text
    assert "has not come to its end" in text


def test_nothing_in_a_record_becomes_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    text = reported(tmp_path, [replace(FAILED, task_name=evil, outcome=evil, thoughts=(evil,))])
    assert "alert(1)</script>" not in text
    assert len([tag for tag, _ in Elements(text).found if tag == "script"]) == 2


def test_thoughts_are_kept_with_their_steps_and_repetitions() -> None:
    result = replace(SOLVED, thoughts=("go left now", "go left now", "go right now"), decided_at=(0, 5, 10))
    assert unpacked(packed_thoughts([result])) == {
        "task0_seed10000": [[0, 2, "", "go left now"], [10, 1, "go", "right", "now"]]
    }


@given(st.lists(st.text("abc ", max_size=30), max_size=6))
def test_no_word_of_a_thought_is_lost(thoughts: list[str]) -> None:
    result = replace(SOLVED, thoughts=tuple(thoughts), decided_at=())
    said = [
        " ".join(filter(None, runs)).split()
        for step, times, *runs in unpacked(packed_thoughts([result]))["task0_seed10000"]
        for _ in range(times)  # type: ignore[call-overload]
    ]
    assert [words for words in said if words] == [t.split() for t in thoughts if t.split()]


def test_a_report_of_500_episodes_stays_below_5_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(400)]
    many = [
        replace(
            SOLVED,
            task=n % 10,
            seed=n,
            thoughts=tuple(" ".join(rng.choice(words, 40)) for _ in range(50)),
            decided_at=tuple(range(0, 250, 5)),
        )
        for n in range(100)
    ]
    assert 5 * len(reported(tmp_path, many)) < 5e6  # of random words: real thoughts repeat themselves


def test_failures_of_every_kind_are_shown_before_successes() -> None:
    results = [replace(SOLVED, task=task, seed=seed) for task in (0, 1) for seed in (1, 2)]
    results += [replace(FAILED, seed=seed) for seed in (3, 4, 5)]
    results += [replace(FAILED, seed=6, outcome=OUTCOMES[2]), replace(FAILED, seed=7, actions="")]
    assert [result.seed for result in choose(results, 9)] == [3, 6, 4, 5, 1, 1, 2, 2]
    assert [result.seed for result in choose(results, 2)] == [3, 6]
    assert choose(results, 0) == []


def test_the_thought_of_a_step_is_the_last_one_before_it() -> None:
    assert [thought_at(SOLVED, step) for step in (0, 4, 5, 9)] == [0, 0, 1, 1]
    assert thought_at(replace(SOLVED, decided_at=()), 3) is None


def test_the_command_leaves_out_what_is_usual() -> None:
    options = EvalOptions("bundles/x", suite="libero_goal", tasks=(1, 2), trials=5, workers=4, delay=0.2)
    assert command(options) == "dtvla eval --policy x --suite libero_goal --tasks 1,2 --trials 5 --delay 0.2"


@pytest.mark.sim
def test_a_video_is_the_recorded_episode_and_one_of_another_world_is_told(tmp_path: Path) -> None:
    options = EvalOptions("expert", episodes=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (result,) = pool.apply(evaluate, (options,))
    cut = replace(result, seed=10_001, actions=pack_actions(list(unpack_actions(result.actions)[:3])))
    replays = list(replay_episodes(options, [result, cut], tmp_path))
    assert [(replay.seed, replay.same) for replay in replays] == [(10_000, True), (10_001, False)]
    with av.open(str(file_of(tmp_path, result))) as video:
        frames = sum(1 for _ in video.decode(video=0))
    assert frames == result.steps + FINAL_FRAMES
    Journal(tmp_path, options).add(result)
    page = Elements(write_report(tmp_path, [(0, 10_000)]).read_text())
    (row,) = [attributes for tag, attributes in page.found if attributes.get("data-key")]
    assert row["data-film"] == "videos/task0_seed10000.mp4"
    assert "does not show the evaluated episode" in (row["data-other"] or "")


def test_the_tables_of_an_evaluation_fit_into_80_columns():
    """Seen: every name and number was broken in two."""
    shares = {"target": 1.0, "side": 1.0, "phase": 1.0}
    result = replace(SOLVED, agreement=shares, task_name="yellow_cylinder_tray")
    results = [replace(result, seed=seed, success=seed > 0) for seed in range(180)]
    console = Console(width=80, record=True, file=io.StringIO())
    for table in success_tables(results):
        console.print(table)
    rows = [line.split() for line in console.export_text().splitlines()]
    rows = [row for row in rows if row and row[0] == "yellow_cylinder_tray"]
    assert " ".join(rows[0]) == "yellow_cylinder_tray 179 of 180 99% 97 to 100% 100% 100% 100% 100%"
    assert rows[1] == ["yellow_cylinder_tray", "0", "0", "0"]
