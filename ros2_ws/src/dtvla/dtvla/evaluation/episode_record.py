"""What is written down of an episode while it runs, whoever decides and however its actions are executed."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla.evaluation.results import EpisodeResult, outcome, pack_actions
from dtvla.evaluation.smoothness import Smoothness
from dtvla.sim.env import CONTROL_PERIOD_S, POSITION_SCALE_M, Observation, SimEnv
from dtvla.sim.expert.scripted_expert import Expert
from dtvla.sim.suites import embedded
from dtvla.sim.thoughts import agreement, check_thought, thought

LIFTED_M = 0.04  # an object this far above where it lay was picked up, not pushed
NEAR_M = 0.03  # a thought that places its object so close to where it is tells the truth


class EpisodeRecord:
    """Grows with an episode.

    Args:
        env: the environment, just reset.
        seed: what it was reset with.
        obs: its first observation.
    """

    def __init__(self, env: SimEnv, seed: int, obs: Observation) -> None:
        self._env, self._seed, self._obs = env, seed, obs
        self._states = hashlib.sha256(env.state().tobytes())
        self._rest = {name: position[2] for name, position in obs.objects.items()}
        self._lifted: dict[str, None] = {}
        self._positions = [obs.ee_position]
        self._actions: list[NDArray[np.float64]] = []
        self._thoughts: list[str] = []
        self._decided_at: list[int] = []
        self._latencies_s: list[float] = []
        self._errors_m: list[float | None] = []
        self._seams: list[int] = []
        self._held = 0
        self._agreements: list[dict[str, bool]] = []
        self._witness: Expert | None = None  # knows what is true in the embedded suites
        if env.info.suite in embedded.SUITES:
            self._witness = Expert(env.scene)
        self._truths: dict[int, str] = {}  # what it thinks, by step: a decision may come steps after its look
        self._witnessed(obs)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every simulator state so far."""
        return self._states.hexdigest()

    def decided(self, decision: Any, obs: Observation, seconds: float) -> None:
        """A decision was taken on `obs`, in `seconds`."""
        self._thoughts.append(decision.thought)
        self._decided_at.append(obs.step)
        self._latencies_s.append(seconds)
        self._errors_m.append(check_thought(decision.thought, obs))
        if self._witness is not None:
            self._agreements.append(agreement(decision.thought, self._truths.get(obs.step, "")))

    def stepped(
        self, action: NDArray[np.float64], obs: Observation, *, seam: bool = False, held: bool = False
    ) -> None:
        """The world made a step.

        Args:
            action: [7] what was executed.
            obs: what came of it.
            seam: it is the first action of a decision that took over from another.
            held: the arm was told to stay, as no decision had an action for this step.
        """
        if seam:
            self._seams.append(len(self._actions))
        self._held += held
        self._obs = obs
        self._witnessed(obs)
        self._actions.append(action)
        self._positions.append(obs.ee_position)
        self._states.update(self._env.state().tobytes())
        high = [name for name, position in obs.objects.items() if position[2] > self._rest[name] + LIFTED_M]
        self._lifted |= dict.fromkeys(high)

    def _witnessed(self, obs: Observation) -> None:
        if self._witness is not None:
            self._witness.act(obs)
            self._truths[obs.step] = thought(self._witness, obs)

    def result(self) -> EpisodeResult:
        """The episode as it stands."""
        info, obs, agreed = self._env.info, self._obs, self._agreements
        near = [error is not None and error < NEAR_M for error in self._errors_m]
        stated = [error is not None for error in self._errors_m]
        commands = [np.asarray(action)[:3] * POSITION_SCALE_M for action in self._actions]
        motion = Smoothness.of(self._positions, commands, self._seams, self._held, CONTROL_PERIOD_S)
        return EpisodeResult(
            task=info.index,
            task_name=info.name,
            seed=self._seed,
            success=obs.success,
            steps=obs.step,
            decisions=len(self._thoughts),
            latency_p50_ms=1e3 * float(np.median(self._latencies_s)),
            target_within_3cm=float(np.mean(near)),
            phase_stated=float(np.mean(stated)),
            thoughts=tuple(self._thoughts),
            outcome=outcome(obs.success, list(self._lifted), *self._env.targets),
            state_sha256=self._states.hexdigest(),
            actions=pack_actions(self._actions),
            decided_at=tuple(self._decided_at),
            motion=asdict(motion),
            agreement={key: float(np.mean([a[key] for a in agreed])) for key in (agreed or [{}])[0]},
        )
