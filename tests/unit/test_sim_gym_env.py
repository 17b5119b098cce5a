"""The worlds as gymnasium environments: its own checker, and the states of SimEnv bit for bit."""

from __future__ import annotations

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation, RecordEpisodeStatistics

from dtvla.sim.env import SUITES, SimEnv
from dtvla.sim.expert.scripted_expert import Expert
from dtvla.sim.gym_env import LiberoGymEnv

pytestmark = pytest.mark.sim

ID = "dtvla.sim.gym_env:dtvla/{}-v0"


def in_a_process(function: Any, *arguments: Any) -> Any:
    """One environment per process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result(240)


def _check() -> list[str]:
    env = gymnasium.make(ID.format("embedded"), task=1, image_size=32, render_mode="rgb_array").unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env)
    env.close()
    return [str(warning.message) for warning in caught if "gymnasium" in str(warning.filename)]


def test_gymnasiums_checker_finds_nothing() -> None:
    assert in_a_process(_check) == []


def test_every_suite_has_an_id() -> None:
    assert {gymnasium.spec(f"dtvla/{suite}-v0").kwargs["suite"] for suite in SUITES} == set(SUITES)


def _actions() -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.uniform(-1, 1, 7).astype(np.float32) for _ in range(12)]


def _plain(seed: int) -> Any:
    env = SimEnv("embedded", 2, image_size=32)
    obs = [env.reset(seed)]
    states = [env.state()]
    for action in _actions():
        obs.append(env.step(action))
        states.append(env.state())
    pictures = [np.stack(list(each.images.values())) for each in obs]
    return np.stack(states), np.stack(pictures), obs[-1].ee_position, env.instruction


def _wrapped(seed: int) -> Any:
    env = gymnasium.make(ID.format("embedded"), task=2, image_size=32)
    observation, info = env.reset(seed=seed)
    seen = [observation]
    states = [env.unwrapped.sim.state()]
    for action in _actions():
        observation, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated) == (0.0, False, False)
        seen.append(observation)
        states.append(env.unwrapped.sim.state())
    pictures = [np.stack([each["agentview"], each["wrist"]]) for each in seen]
    return np.stack(states), np.stack(pictures), seen[-1]["proprioception"][8:11], info["instruction"]


def test_seed_and_actions_give_the_states_of_the_plain_environment_bit_for_bit() -> None:
    plain, wrapped = in_a_process(_plain, 10_003), in_a_process(_wrapped, 10_003)
    for one, other in zip(plain[:3], wrapped[:3], strict=True):
        assert np.array_equal(one, other)
    assert plain[3] == wrapped[3]


def _random_policy(steps: int) -> Any:
    env = FlattenObservation(
        RecordEpisodeStatistics(gymnasium.make(ID.format("embedded"), image_size=16, max_steps=steps))
    )
    env.action_space.seed(0)
    ends = []
    for episode in range(2):
        env.reset(seed=10_000 + episode)
        terminated = truncated = False
        while not (terminated or truncated):
            *_, terminated, truncated, info = env.step(env.action_space.sample())
        ends.append((terminated, truncated, info["episode"]["l"], info["episode"]["r"], info["success"]))
    return ends


def test_a_random_policy_runs_in_the_wrappers_of_others_until_the_limit() -> None:
    assert in_a_process(_random_policy, 8) == [(False, True, 8, 0.0, False)] * 2


def _expert() -> Any:
    env = LiberoGymEnv(image_size=16)
    env.reset(seed=10_000)
    expert = Expert(env.sim.scene)
    obs = env.sim._observation(look=False)
    expert.reset(obs)
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(expert.act(obs).astype(np.float32))
        rewards.append(reward)
        obs = env.sim._observation(look=False)
    return rewards, terminated, truncated, info["success"]


def test_who_reaches_the_goal_is_rewarded_once_and_the_episode_ends() -> None:
    rewards, terminated, truncated, success = in_a_process(_expert)
    assert (terminated, truncated, success) == (True, False, True)
    assert rewards[-1] == sum(rewards) == 1.0


def _refusals() -> list[str]:
    found = []
    for call in (
        lambda: LiberoGymEnv("no_suite"),
        lambda: LiberoGymEnv(render_mode="human"),
        lambda: LiberoGymEnv(image_size=16).reset(options={"layout": 3}),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        found.append(str(caught.value))
    return found


def test_what_it_does_not_know_is_refused_in_words() -> None:
    suite, mode, option = in_a_process(_refusals)
    assert "Unknown suite 'no_suite'" in suite
    assert "render mode 'human'" in mode
    assert "takes no options, got layout" in option
