"""Who decides in an evaluation: a policy that sees, or a script that knows the state or needs nothing.

The scripts bound what a policy can reach: the expert from above, random actions from below. A replay
shows that the world gives the same episode for the same actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError
from dtvla.evaluation.results import REPLAY, read_journal, unpack_actions
from dtvla.policy.policy import Policy
from dtvla.sim.env import ACTION_DIM, Observation, SimEnv
from dtvla.sim.expert.pick_and_place import pick_and_place_plans
from dtvla.sim.expert.scripted_expert import Expert, Phase, PickAndPlacePlan
from dtvla.sim.suites import embedded
from dtvla.sim.thoughts import thought


class EpisodePolicy(Protocol):
    """What an episode needs of a policy: it is shown pictures and told the instruction."""

    def reset(self) -> None: ...

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> Any: ...


class SwappedThoughtPolicy:
    """A policy that acts on what it thinks of these pictures when told another task.

    Args:
        policy: decides as it was trained to.
        instructions: of the suite's tasks; the one half of them further on is thought about.
    """

    def __init__(self, policy: Policy, instructions: Sequence[str]) -> None:
        self._policy = policy
        turn = max(1, len(instructions) // 2)  # tasks beside each other may differ in the receptacle alone
        shifted = [*instructions[turn:], *instructions[:turn]]
        self._other = dict(zip(instructions, shifted, strict=True))

    def reset(self) -> None:
        self._policy.reset()

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> Any:
        thought = self._policy.think(images, self._other[instruction])
        return self._policy.act(images, instruction, thought)


@dataclass(frozen=True)
class ScriptedDecision:
    """A script's decision, in the form of a policy's."""

    raw_actions: NDArray[np.float64]  # [n, 7], the benchmark's units
    thought: str = ""


class Script(ABC):
    """A decider that is shown the whole state instead of pictures."""

    @abstractmethod
    def start(self, env: SimEnv, seed: int, obs: Observation) -> None:
        """An episode begins.

        Args:
            env: the environment, just reset; it may be asked, never stepped.
            seed: what it was reset with.
            obs: its first observation.
        """

    @abstractmethod
    def decide(self, obs: Observation) -> ScriptedDecision:
        """One action, or several that are executed one after the other."""


def script(name: str) -> Script:
    """The script of a name: `expert`, `random` or `replay:FILE` (the `episodes.jsonl` of an evaluation).

    Raises:
        InputError: no such script, or the file is no record.
    """
    if name.startswith(REPLAY):
        return ReplayedActions(Path(name.removeprefix(REPLAY)))
    known: dict[str, type[Script]] = {"expert": ScriptedExpert, "random": RandomActions}
    if name not in known:
        raise InputError(f"There is no script '{name}'; there are expert, random and replay:FILE.")
    return known[name]()


class ScriptedExpert(Script):
    """The expert on the task's jobs, one after the other. Thinks aloud in the embedded suite."""

    def start(self, env: SimEnv, seed: int, obs: Observation) -> None:
        self._env, self._home = env, obs
        self._embedded = env.info.suite in embedded.SUITES
        self._todo: list[tuple[tuple[str, ...], PickAndPlacePlan]] = []
        if self._embedded:
            self._expert = Expert(env.scene)
        else:
            self._todo = pick_and_place_plans(env, obs)
            self._expert = Expert(self._todo[0][1])
        self._expert.reset(obs)

    def decide(self, obs: Observation) -> ScriptedDecision:
        if len(self._todo) > 1 and self._is_done(obs):
            self._todo.pop(0)
            self._expert = Expert(self._todo[0][1])
            self._expert.reset(self._home)  # the gripper may have been turned for the job before
        action = self._expert.act(obs)
        return ScriptedDecision(action[None], thought(self._expert, obs) if self._embedded else "")

    def _is_done(self, obs: Observation) -> bool:
        """The first job's goal is met, and its object let go."""
        let_go = self._expert.phase in (Phase.RELEASE, Phase.REACH) and not self._expert.holds(obs)
        return let_go and self._env.holds(self._todo[0][0])


class RandomActions(Script):
    """Uniform actions in [-1, 1], the same for the same task and seed: the lower bound."""

    def start(self, env: SimEnv, seed: int, obs: Observation) -> None:
        self._rng = np.random.default_rng((seed, env.info.index))

    def decide(self, obs: Observation) -> ScriptedDecision:
        return ScriptedDecision(self._rng.uniform(-1, 1, (1, ACTION_DIM)))


class ReplayedActions(Script):
    """The very actions of a recorded evaluation, found by suite, task and seed."""

    def __init__(self, path: Path) -> None:
        head, results = read_journal(path)
        self._path = path
        self._suite = head["options"]["suite"]
        self._recorded = {(r.task, r.seed): unpack_actions(r.actions) for r in results}

    def start(self, env: SimEnv, seed: int, obs: Observation) -> None:
        key = (env.info.index, seed)
        if env.info.suite != self._suite or key not in self._recorded:
            raise InputError(
                f"{self._path} holds no episode of task {key[0]} of '{env.info.suite}' with seed {seed}."
            )
        self._left = list(self._recorded[key])

    def decide(self, obs: Observation) -> ScriptedDecision:
        if not self._left:
            raise InputError(
                f"The recorded actions end at step {obs.step}, the episode does not: this is another world "
                "than the recorded one (other assets, or another version of the simulator)."
            )
        return ScriptedDecision(self._left.pop(0)[None])
