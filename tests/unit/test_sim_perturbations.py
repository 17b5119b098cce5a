"""Variations: strength 0 changes nothing, other strengths change what they say and nothing else."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dtvla.cli.sweeps import variations_table
from dtvla.evaluation.results import EvalOptions
from dtvla.evaluation.sweeps.variation_sweep import markdown, points, summarise
from dtvla.sim import assets
from dtvla.sim.env import IDLE_ACTION, SimEnv
from dtvla.sim.perturbations import pictures, scene
from dtvla.sim.perturbations.instructions import LEVELS, paraphrase
from dtvla.sim.perturbations.perturbation import NAMES, PerturbedWorld, Variation, parse_all
from dtvla.sim.suites import libero
from dtvla.sim.suites.embedded import TASKS

SEEN = [*scene.CHANGES, *pictures.CHANGES]  # all but the words
LANGUAGES = [libero.language(n) for s in libero.MAX_STEPS for n in libero.task_names(s)]


Episode = tuple[str, str, str]  # SHA-256 of the pictures and of the state after a step, and the instruction
RUNS = [("", (5, 6))]
RUNS += [(f"{name}:0", (5, 6)) for name in NAMES]
RUNS += [(f"{name}:2", seeds) for name in SEEN for seeds in ((5, 6), (6,))]


def _play(suite: str, runs: list[tuple[str, tuple[int, ...]]], where: str = "") -> list[list[Episode]]:
    """Plays the first step of each run's episodes, in one environment: to build it takes seconds."""
    if where:
        os.environ[assets.VARIABLE] = where
    env = SimEnv(suite, 0, image_size=64)
    played = []
    for words, seeds in runs:
        env.vary(Variation.parse(words))
        played.append([_first_step(env, seed) for seed in seeds])
    env.close()
    return played


def _first_step(env: SimEnv, seed: int) -> Episode:
    env.reset(seed)
    obs = env.step(np.array(IDLE_ACTION))
    pictures = b"".join(obs.images[name].tobytes() for name in sorted(obs.images))
    return hashlib.sha256(pictures).hexdigest(), hashlib.sha256(env.state()).hexdigest(), env.instruction


def play(*arguments: Any) -> list[list[Episode]]:
    """Plays in another process, which serves one environment at a time."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_play, arguments)


@pytest.fixture(scope="module")
def played() -> dict[tuple[str, tuple[int, ...]], list[Episode]]:
    return dict(zip(RUNS, play("embedded", RUNS), strict=True))


@pytest.mark.sim
@pytest.mark.parametrize("name", NAMES)
def test_a_variation_of_strength_0_leaves_state_and_pictures_as_they_are(
    played: dict[tuple[str, tuple[int, ...]], list[Episode]], name: str
) -> None:
    assert played[f"{name}:0", (5, 6)] == played["", (5, 6)]


@pytest.mark.sim
@pytest.mark.parametrize("name", SEEN)
def test_a_variation_changes_the_pictures_and_only_the_robots_the_state(
    played: dict[tuple[str, tuple[int, ...]], list[Episode]], name: str
) -> None:
    for own, varied in zip(played["", (5, 6)], played[f"{name}:2", (5, 6)], strict=True):
        assert varied[0] != own[0]
        assert (varied[1] != own[1]) == (name == "robot")
        assert varied[2] == own[2]


@pytest.mark.sim
@pytest.mark.parametrize("name", SEEN)
def test_a_varied_episode_does_not_depend_on_the_one_before(
    played: dict[tuple[str, tuple[int, ...]], list[Episode]], name: str
) -> None:
    assert played[f"{name}:2", (6,)] == played[f"{name}:2", (5, 6)][1:]


@pytest.mark.sim
def test_liberos_suites_are_varied_in_the_same_way(libero_assets: str) -> None:
    names = sorted(scene.CHANGES)
    own, *varied = play(
        "libero_object", [("", (0,)), *((f"{name}:2", (0,)) for name in names)], libero_assets
    )
    for name, episodes in zip(names, varied, strict=True):
        assert episodes[0][0] != own[0][0], name
        assert (episodes[0][1] != own[0][1]) == (name == "robot")


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(pictures.CHANGES)),
    st.floats(0.1, 3.0),
    st.integers(0, 2**31 - 1),
    st.integers(16, 80),
)
def test_a_fault_of_a_camera_keeps_the_pictures_shape_and_depends_on_the_seed_alone(
    name: str, strength: float, seed: int, side: int
) -> None:
    image = np.random.default_rng(side).integers(0, 256, (side, side + 3, 3), np.uint8)

    def changed(step: int) -> np.ndarray:
        varied = PerturbedWorld(Variation(name, strength))
        varied.begin(None, seed)
        return varied.picture(image.copy(), 0, step)

    assert changed(1).shape == image.shape
    assert changed(1).dtype == np.uint8
    assert (changed(1) == changed(1)).all()
    if name == "noise":
        assert (changed(1) != changed(2)).any(), "noise is new in every picture"
    else:
        assert (changed(1) == changed(2)).all()


@given(
    st.sampled_from(LANGUAGES + [task.language for task in TASKS]), st.integers(1, LEVELS), st.integers(0, 99)
)
def test_a_paraphrase_is_another_sentence_the_same_for_the_same_seed(
    language: str, level: int, seed: int
) -> None:
    words = paraphrase(language, level, seed)
    assert words == paraphrase(language, level, seed)
    assert words.lower() != language.lower()
    assert "{" not in words
    assert len(words) < 300


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_paraphrase_of_a_libero_task_keeps_its_objects(language: str) -> None:
    """Everything but the verbs is still there, in its order."""
    verbs = r"\b(pick up|place|put|turn on|turn off|open|close|push|stack)\b"
    rest = [part.strip() for part in re.split(verbs, language) if not re.fullmatch(verbs, part)]
    for level in range(1, LEVELS + 1):
        words = paraphrase(language, level, 3)
        assert re.search(".*".join(re.escape(part) for part in rest), words), words


def test_names_and_strengths_are_checked_at_the_door() -> None:
    assert Variation.parse("camera") == Variation("camera", 2.0)
    assert str(Variation.parse("camera:0.5")) == "camera:0.5"
    assert Variation.parse("") is None
    with pytest.raises(ValueError, match="no variation 'weather'; there are camera, fov, light"):
        EvalOptions("bundle", variation="weather:1")
    for wrong in ("camera:4", "camera:-1", "camera:much", "camera:nan"):
        with pytest.raises(ValueError, match="has no strength that is possible"):
            Variation.parse(wrong)


def test_a_set_names_each_variation_once_beside_the_suites_own_world() -> None:
    assert [str(each) for each in parse_all("camera:1, light, camera:1")] == ["camera:1", "light:2"]
    assert len(parse_all("all:3")) == len(NAMES)
    found = points(EvalOptions("expert"), "camera:1,robot:0.5")
    assert list(found) == ["none", "camera_1", "robot_0.5"]
    assert [options.variation for options in found.values()] == ["", "camera:1", "robot:0.5"]
    with pytest.raises(ValueError, match="--vary names no variation"):
        points(EvalOptions("expert"), ",")


def test_a_set_is_summed_up_against_the_suites_own_world() -> None:
    from tests.unit.test_evaluation_compare import episodes

    evaluations = points(EvalOptions("expert"), "noise:1,blur:1")
    rows = summarise(evaluations, {"none": episodes("++++"), "noise_1": episodes("+---")})
    assert [(row.variation, row.solved, row.pairs.only_a) for row in rows] == [
        ("none", 4, 0),
        ("noise:1", 1, 3),
    ]
    assert "| noise:1 | noise of 8 of 255 in every pixel | 1 of 4 |" in markdown(rows)
    assert rows[1].to_json()["difference"] == -0.75


def test_a_set_is_shown_within_80_columns_with_nothing_cut_off() -> None:
    from tests.unit.test_evaluation_compare import episodes

    words = "background:2,occlusion:2"
    found = {
        name: episodes("++++" if name == "none" else "+---")
        for name in ("none", "background_2", "occlusion_2")
    }
    console = Console(width=80, record=True, file=StringIO())
    console.print(variations_table(summarise(points(EvalOptions("expert"), words), found)))
    shown = console.export_text()
    assert "…" not in shown
    for row in ("background:2", "occlusion:2"):
        assert re.search(rf"{row} +1 of 4 +5-70 +-75 \([-+0-9 to]+\)", shown)


def test_the_document_names_every_variation_as_the_code_does() -> None:
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    for name, words in NAMES.items():
        assert f"| {name} | {words} |" in text
