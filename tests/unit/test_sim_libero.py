"""LIBERO's own suites behind the same interface as the embedded one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtvla.evaluation.results import Journal
from dtvla.evaluation.runner import EvalOptions, evaluate
from dtvla.sim import assets
from dtvla.sim.env import SUITES, SimEnv, list_tasks
from dtvla.sim.expert.pick_and_place import CannotPlan, pick_and_place_plans
from dtvla.sim.suites import embedded, libero

LIBERO = [suite for suite in SUITES if suite not in embedded.SUITES]


def _name_assets(where: str) -> None:
    os.environ[assets.VARIABLE] = where


@pytest.fixture(scope="module")
def in_process(libero_assets: str) -> Iterator[Callable[..., Any]]:
    """Calls functions in one other process, which serves one environment at a time."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, _name_assets, (libero_assets,)) as pool:
        yield lambda function, *arguments: pool.apply(function, arguments)


@pytest.mark.parametrize(
    ("suite", "steps"),
    [("libero_spatial", 220), ("libero_object", 280), ("libero_goal", 300), ("libero_10", 620)],
)
def test_a_suite_has_ten_tasks_with_the_references_step_limit_and_fifty_initial_states(
    suite: str, steps: int
) -> None:
    tasks = list_tasks(suite)
    assert [task.index for task in tasks] == list(range(10))
    assert {task.max_steps for task in tasks} == {steps}
    for task in tasks:
        assert libero.bddl_file(suite, task.name).is_file()
        assert len(libero.init_states(suite, task.name)) == 50


def test_the_instruction_leaves_out_the_scene() -> None:
    assert list_tasks("libero_object")[0].language == "pick up the alphabet soup and place it in the basket"
    assert list_tasks("libero_10")[2].language == "turn on the stove and put the moka pot on it"


class Evil:
    """Would run a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def saved(path: Path, value: Any) -> Path:
    """A file as `torch.save` writes it, holding a value."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
    return path


def test_initial_states_are_read_as_one_matrix_of_numbers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5))
    assert (libero.read_arrays(saved(tmp_path / "good", values)) == values).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Evil(), "system is not allowed"),
        ([np.zeros((2, 2)), Evil()], "system is not allowed"),
        (Path("x"), "is not allowed"),
        (np.zeros(3), "holds no matrix of float64"),
        (np.zeros((2, 2), np.float32), "holds no matrix of float64"),
        ({"states": 1}, "holds no matrix of float64 but dict"),
        (np.array([[1.0, np.nan]]), "not finite"),
    ],
)
def test_a_file_of_initial_states_that_holds_anything_else_is_refused(
    value: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        libero.read_arrays(saved(tmp_path / "bad", value))


def test_a_file_that_is_no_archive_or_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="torn is not a file of initial states"):
        libero.read_arrays(tmp_path / "torn")
    with pytest.raises(ValueError, match="do not exist"):
        libero.read_arrays(tmp_path / "gone")


def _trajectories(seeds: list[int]) -> list[list[Any]]:
    """States of short random episodes, one after the other in one environment."""
    env = SimEnv("libero_object", 0, render=False)
    found = []
    for seed in seeds:
        env.reset(seed)
        rng = np.random.default_rng(0)
        states = [env.state()]
        for _ in range(12):
            env.step(rng.uniform(-1, 1, 7))
            states.append(env.state())
        found.append([state.tobytes() for state in states])
    env.close()
    return found


@pytest.mark.sim
def test_one_initial_state_gives_one_trajectory_to_the_last_bit_whatever_came_before(
    in_process: Callable[..., Any],
) -> None:
    """A bug of the simulator: its gripper remembers the episode before, unless it is told to forget."""
    first, other, again, wrapped = in_process(_trajectories, [3, 4, 3, 53])
    assert first == again == wrapped
    assert first[0] != other[0]
    assert in_process(_trajectories, [3]) == [first]


def _executed(action: np.ndarray) -> tuple[list[bytes], str]:
    """What reaches LIBERO for an action, and what is said of a state that does not fit."""
    env = SimEnv("libero_object", 0, render=False)
    env.reset(0)
    seen: list[bytes] = []
    step = env._env.step
    env._env.step = lambda values: (seen.append(values.tobytes()), step(values))[1]
    env.step(action)
    try:
        env._set_state(np.zeros(9))
        said = ""
    except ValueError as error:
        said = str(error)
    env.close()
    return seen, said


@pytest.mark.sim
def test_an_action_reaches_the_world_as_it_is_and_a_foreign_state_does_not(
    in_process: Callable[..., Any],
) -> None:
    action = np.random.default_rng(1).uniform(-1, 1, 7)
    seen, said = in_process(_executed, action)
    assert seen == [action.tobytes()]
    assert "have 9 numbers, this scene has" in said


def _where_things_show() -> tuple[list[list[float]], list[list[float]]]:
    """(x, y) of objects on the floor, and (row, column) where the picture changes when they are away."""
    env = SimEnv("libero_object", 0, image_size=128)
    before = env.reset(0)
    sim = env._env.env.sim
    places, pixels = [], []
    for name in before.objects:
        joint = env._env.env.objects_dict[name].joints[-1]
        pose = np.array(sim.data.get_joint_qpos(joint))
        sim.data.set_joint_qpos(joint, pose - [0, 0, 5, 0, 0, 0, 0])
        sim.forward()
        changed = (env.pictures()["agentview"] != before.images["agentview"]).any(-1)
        sim.data.set_joint_qpos(joint, pose)
        sim.forward()
        places.append(before.objects[name][:2].tolist())
        pixels.append(np.argwhere(changed).mean(0).tolist())
    env.close()
    return places, pixels


@pytest.mark.sim
def test_the_picture_is_upright_far_from_the_robot_is_low_and_its_left_is_left(
    in_process: Callable[..., Any],
) -> None:
    """Each object is taken away in turn; where the picture changes, it stood."""
    places, pixels = in_process(_where_things_show)
    (x, y), (row, column) = np.array(places).T, np.array(pixels).T
    assert np.corrcoef(x, row)[0, 1] > 0.9
    assert np.corrcoef(y, column)[0, 1] < -0.9


def _refused(suite: str, task: int) -> str:
    env = SimEnv(suite, task, render=False)
    try:
        pick_and_place_plans(env, env.reset(0))
    except CannotPlan as error:
        return str(error)
    finally:
        env.close()
    return ""


@pytest.mark.sim
@pytest.mark.parametrize(
    ("task", "words"), [(7, "cannot 'turnon flat_stove_1'"), (3, "is covered"), (5, "wider than the gripper")]
)
def test_the_expert_says_what_it_cannot_do(task: int, words: str, in_process: Callable[..., Any]) -> None:
    assert words in in_process(_refused, "libero_goal", task)


@pytest.mark.sim
def test_a_replay_of_two_trials_gives_every_recorded_bit_again(
    in_process: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libero_assets: str
) -> None:
    monkeypatch.setenv(assets.VARIABLE, libero_assets)
    options = EvalOptions("expert", suite="libero_goal", tasks=(8,), trials=2)
    journal = Journal(tmp_path, options)
    recorded = in_process(evaluate, options)
    for result in recorded:
        journal.add(result)
    again = in_process(
        evaluate, EvalOptions(f"replay:{journal.path}", suite="libero_goal", tasks=(8,), trials=2)
    )
    assert [r.success for r in recorded] == [True, True]
    assert [r.state_sha256 for r in again] == [r.state_sha256 for r in recorded]
    alone = in_process(evaluate, EvalOptions("expert", suite="libero_goal", tasks=(8,), seed0=1, trials=1))
    assert alone[0].state_sha256 == recorded[1].state_sha256, "a trial can be run alone"
