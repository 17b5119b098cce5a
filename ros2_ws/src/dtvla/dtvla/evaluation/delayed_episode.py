"""An episode in which the world moves on while the policy thinks: the node's executor on simulated time.

At each control period the chunk that has arrived by then is offered to the very `ChunkExecutor` that the
controller node runs in real time, and its command is executed; without a row the arm holds or slows down, as
there. The policy decides by the rule of the policy node: once per executed chunk, as soon as it is free. A
delay that is no multiple of the period counts up to the next tick, because commands are taken at ticks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import NS_PER_S, Chunk
from dtvla.control.chunk_executor import ChunkExecutor, ExecutionMode
from dtvla.control.limits.cartesian import Limits
from dtvla.control.limits.motion import MotionLimits
from dtvla.control.open_loop_executor import Command
from dtvla.control.replanning_rule import ReplanningRule
from dtvla.control.robots import PANDA
from dtvla.control.stopping import StoppingLimits
from dtvla.control.temporal_ensembling import Blending, Transition
from dtvla.evaluation.episode_record import EpisodeRecord
from dtvla.evaluation.policy_adapters import EpisodePolicy
from dtvla.evaluation.results import MAX_DELAY_S, EpisodeResult, EvalOptions
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.policy import Decision
from dtvla.sim.env import SimEnv, raw_action


@dataclass(frozen=True)
class Delay:
    """How late chunks come and how they are executed.

    Attributes:
        seconds: from picture to chunk; `measured`: what each decision really took (then two runs differ).
        mode, seam: as the controller node's `chunk_mode` and `chunk_seam`.
    """

    seconds: float | Literal["measured"]
    mode: ExecutionMode = ExecutionMode.OPEN_LOOP
    seam: Transition = Transition.CUT

    @classmethod
    def of(cls, options: EvalOptions) -> Delay | None:
        """What an evaluation asks for; None when the world waits for the policy."""
        if options.delay is None:
            return None
        return cls(options.delay, ExecutionMode(options.chunk_mode), Transition(options.chunk_seam))

    def executor(self) -> ChunkExecutor:
        """The controller node's executor, in real time."""
        smooth, limits = MotionLimits.of(PANDA), Limits()
        return ChunkExecutor(
            self.mode,
            limits,
            lockstep=False,
            max_age_s=MAX_DELAY_S,
            blend=Blending(seam=self.seam),
            stopping=StoppingLimits(smooth.linear, smooth.angular),
        )

    def late_ns(self, took_s: float) -> int:
        """The delay of a decision that took `took_s`."""
        seconds = took_s if self.seconds == "measured" else self.seconds
        return round(seconds * NS_PER_S)


@dataclass(frozen=True)
class Pending:
    """A decision on its way to the controller."""

    chunk: Chunk
    arrives_ns: int


def run_delayed(
    env: SimEnv, policy: EpisodePolicy, seed: int, spec: PolicySpec, execute_steps: int, delay: Delay
) -> EpisodeResult:
    """Runs one episode of the environment's task.

    Args:
        env: the environment, with pictures.
        policy: who decides.
        seed: see `SimEnv.reset`.
        spec: of the policy.
        execute_steps: rows after which the next decision is due.
        delay: how late chunks come and how they are executed.
    """
    obs = env.reset(seed)
    policy.reset()
    record, executor = EpisodeRecord(env, seed, obs), delay.executor()
    period_ns = round(spec.control_period_s * NS_PER_S)
    replanning = ReplanningRule(execute_steps * period_ns, period_ns)
    pending: Pending | None = None
    number, followed = 0, 0
    while obs.step < env.info.max_steps and not obs.success:
        now_ns = obs.step * period_ns
        pending = _deliver(executor, pending, now_ns)
        if pending is None and replanning.due(now_ns):
            replanning.last_ns = now_ns
            number += 1
            started = time.perf_counter()
            decision = policy.decide(obs.images, env.instruction)
            took_s = time.perf_counter() - started
            record.decided(decision, obs, took_s)
            chunk = _chunk(spec, decision, number, now_ns, execute_steps)
            pending = _deliver(executor, Pending(chunk, now_ns + delay.late_ns(took_s)), now_ns)
        executor.measure_gripper(obs.gripper_opening_m)
        command = executor.step(now_ns)
        assert command is not None, "only lockstep leaves ticks unanswered"
        then_ns = now_ns + period_ns
        free = pending is None or pending.arrives_ns <= then_ns
        obs = env.step(_action(command), look=free and replanning.due(then_ns))
        seam = not command.hold and 0 < followed != command.decision_id
        record.stepped(_action(command), obs, seam=seam, held=command.hold)
        followed = followed if command.hold else command.decision_id
    return record.result()


def _deliver(executor: ChunkExecutor, pending: Pending | None, now_ns: int) -> Pending | None:
    """Offers a decision whose time has come; returns what is still on its way."""
    if pending is None or pending.arrives_ns > now_ns:
        return pending
    executor.offer(pending.chunk, now_ns)  # refused when it is too old: the arm then holds, as on a robot
    return None


def _chunk(spec: PolicySpec, decision: Decision, number: int, stamp_ns: int, execute_steps: int) -> Chunk:
    translations, rotations, openings = spec.metric(decision.raw_actions)
    period_ns = round(spec.control_period_s * NS_PER_S)
    steps = min(execute_steps, len(translations))
    raw = decision.raw_actions
    return Chunk(number, stamp_ns, period_ns, steps, translations, rotations, openings, raw)


def _action(command: Command) -> NDArray[np.float64]:
    """The benchmark's action for a command: the policy's own where it is exactly that."""
    if command.raw_action is not None:
        return command.raw_action
    return raw_action(command.translation.tolist(), command.rotation.tolist(), command.gripper_opening_m)
