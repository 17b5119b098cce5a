"""Executes chunks in one of three ways: what the arm is told at each tick. No ROS and no clock in here.

- OPEN_LOOP: the rows of the newest chunk at their own stamps, and a hold behind them. The benchmark's way;
  it is the `OpenLoopExecutor`, bit for bit.
- RECEDING: the newest chunk takes over as soon as it comes, at the row that the arm has come to.
- ENSEMBLED: the mean of what all overlapping chunks say about this moment.

In the last two, rows count in motion time (`timeline`), a chunk is executed to its horizon while the next
one is late, and after that the arm slows down to a hold.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import NS_PER_S, Chunk
from dtvla.control.chunk_buffer import ChunkBuffer, WantedMotion
from dtvla.control.limits.cartesian import Limits, clamp_length
from dtvla.control.motion_time import DelayEstimate, MotionClock
from dtvla.control.open_loop_executor import Command, ControllerState, OpenLoopExecutor
from dtvla.control.stopping import StoppingLimits, StoppingMotion
from dtvla.control.temporal_ensembling import Blending
from dtvla.errors import InputError


class ExecutionMode(Enum):
    """How chunks are executed."""

    OPEN_LOOP = "open_loop"
    RECEDING = "receding"
    ENSEMBLED = "ensembled"


class ChunkExecutor:
    """A state machine: `offer` chunks as they come, `step` once per tick.

    A command's translation and rotation are per period of the chunk; where ticks come faster than rows
    (`tick_ns`), they are velocities times that period: give them to a `MotionLimiter` as a twist.

    Args:
        mode: how chunks are executed.
        limits: what is let through; a hold before any chunk leaves the gripper at its largest opening.
        lockstep, max_age_s: as of the `OpenLoopExecutor`.
        blend: how chunks become one motion (not in OPEN_LOOP).
        stopping: how fast the arm slows down when a chunk is late; None stops it dead.
        tick_ns: time between two ticks; None: one tick per row.
        delay: estimate of the time from picture to chunk.
    """

    _tick_ns: int | None
    _answer: Command | None
    _velocity: NDArray[np.float64]  # [6] per period, at the end of the last command
    _stopping_motion: StoppingMotion | None
    _last_chunk: Chunk | None

    def __init__(
        self,
        mode: ExecutionMode,
        limits: Limits,
        *,
        lockstep: bool,
        max_age_s: float,
        blend: Blending | None = None,
        stopping: StoppingLimits | None = None,
        tick_ns: int | None = None,
        delay: DelayEstimate | None = None,
    ) -> None:
        if tick_ns is not None and tick_ns <= 0:
            raise InputError(f"The time between two ticks is {tick_ns} ns; give a figure above 0.")
        self.mode = mode
        self.delay = delay or DelayEstimate()
        self.late_chunks = 0
        self._open_loop = OpenLoopExecutor(limits, lockstep, max_age_s, limits.max_gripper_opening_m)
        self._plans = ChunkBuffer(blend or Blending(), overlap=mode is ExecutionMode.ENSEMBLED)
        self._stopping = stopping
        self._tick_length_ns = self._lasts_ns = tick_ns
        self._suspended = False
        self._restart()

    @property
    def state(self) -> ControllerState:
        if self._suspended and not self._open_loop.stopped:
            return ControllerState.SUSPENDED
        if self.mode is ExecutionMode.OPEN_LOOP or self._open_loop.stopped:
            return self._open_loop.state
        if self._stopping_motion is not None:
            return ControllerState.SLOWING_DOWN
        if self._open_loop.chunk is None:
            return ControllerState.WAITING
        held = self._answer is not None and self._answer.hold
        return ControllerState.HOLDING if held else ControllerState.EXECUTING

    @property
    def stopped(self) -> bool:
        """Whether /stop is latched."""
        return self._open_loop.stopped

    @property
    def chunk(self) -> Chunk | None:
        return self._open_loop.chunk

    @property
    def clamped(self) -> int:
        return self._open_loop.clamped

    @property
    def gripper_opening_m(self) -> float:
        return self._open_loop.gripper_opening_m

    def offer(self, chunk: Chunk, now_ns: int) -> str | None:
        """Takes a chunk in; returns the sentence why not when it is refused (the old ones then stay)."""
        benchmark = self.mode is ExecutionMode.OPEN_LOOP
        sentence = self._open_loop.offer(chunk) if benchmark else self._anchor(chunk, now_ns)
        if sentence is None:
            self.delay.observe(chunk.decision_id, now_ns - chunk.stamp_ns)
        return sentence

    def step(self, tick_ns: int, *, suspended: bool = False, lasts_ns: int | None = None) -> Command | None:
        """The command for the tick at `tick_ns`, or None when a lockstep world has to wait.

        The same tick asked again gets the same answer; a tick further back starts all anew. While it is
        `suspended` (something is wrong, see `watchdogs`) every answer is a hold, and no row is used up.
        Where ticks have a length of their own, `lasts_ns` is that of this one, if it is another.
        """
        self._suspended = suspended
        self._lasts_ns = self._tick_length_ns and (lasts_ns or self._tick_length_ns)
        if self.mode is ExecutionMode.OPEN_LOOP:
            return self._open_loop.hold(tick_ns) if suspended else self._open_loop.tick(tick_ns)
        if self._tick_ns is not None and tick_ns < self._tick_ns:
            self._restart()
            self._open_loop.chunk = None
        if self._open_loop.stopped or suspended:
            self._velocity, self._stopping_motion = np.zeros(6), None
        elif self._answer is not None and tick_ns == self._tick_ns:
            return self._answer
        if tick_ns != self._tick_ns:
            self._clock.tick(tick_ns)
        self._tick_ns = tick_ns
        self._answer = self._decide(tick_ns)
        return self._answer

    def stop(self) -> None:
        """Latches: from now on every answer is a hold, until `clear_stop`."""
        self._open_loop.stop()

    def clear_stop(self) -> None:
        """Releases the latch; in real time the arm then waits for a chunk made from a new look."""
        self._open_loop.clear_stop()
        if self._open_loop.chunk is None:
            self._plans.clear()
        self._answer = None

    def forget_policy(self) -> None:
        """The policy is gone: its chunks are dropped, and a new process may count from 1 again."""
        self._open_loop.forget_policy()
        self._plans.clear()
        self.delay.forget()

    def drop_plans(self) -> None:
        """The task has changed: what was planned for the old one has no say any more."""
        self._plans.clear()

    def measure_gripper(self, opening_m: float) -> None:
        """Takes the measured opening for holds, as long as nothing has been commanded yet."""
        self._open_loop.measure_gripper(opening_m)

    def _restart(self) -> None:
        self._clock = MotionClock()
        self._plans.clear()
        self._tick_ns = self._answer = self._stopping_motion = self._last_chunk = None
        self._velocity = np.zeros(6)

    def _anchor(self, chunk: Chunk, now_ns: int) -> str | None:
        start_ns = self._clock.at(chunk.stamp_ns)
        if start_ns is None:
            return (
                "The chunk's image is older than what the controller remembers of its own motion, so its "
                "rows cannot be placed. Check that all nodes use one clock."
            )
        sentence = self._open_loop.offer(chunk, now_ns)
        if sentence is None and chunk.hold and not self._open_loop.lockstep:
            self._plans.clear()  # the arm slows down at once, whatever older chunks still plan
        elif sentence is None and not self._plans.knows(chunk):
            self._plans.add(chunk, start_ns, self._clock.now_ns)
        return sentence

    def _decide(self, tick_ns: int) -> Command | None:
        if self._open_loop.stopped or self._suspended:
            self._plans.pause()
            self._clock.spend(0)
            return self._open_loop.hold(tick_ns)
        newest, lockstep = self._plans.newest, self._open_loop.lockstep
        if newest is not None:
            self._last_chunk = newest.chunk
            length_ns = self._lasts_ns or newest.chunk.period_ns
            wanted = self._plans.wanted(self._clock.now_ns, length_ns, self._velocity, due=lockstep)
            if wanted is not None:
                self._stopping_motion = None
                self._clock.spend(length_ns)
                return self._execute(tick_ns, wanted)
        if self._last_chunk is not None and not lockstep:
            return self._slow_down(tick_ns, self._last_chunk)
        self._velocity = np.zeros(6)
        self._clock.spend(0)
        return None if lockstep else self._open_loop.hold(tick_ns)

    def _execute(self, tick_ns: int, wanted: WantedMotion) -> Command:
        chunk = wanted.plan.chunk
        opening_m = float(chunk.gripper_openings[wanted.row])
        moves = (wanted.delta[:3], wanted.delta[3:], opening_m)
        command = self._open_loop.clamp(tick_ns, chunk, wanted.row, moves, wanted.raw_action)
        seconds, limits = chunk.period_ns / NS_PER_S, self._open_loop.limits
        linear = clamp_length(wanted.velocity[:3], limits.max_linear_velocity_m_s * seconds)
        angular = clamp_length(wanted.velocity[3:], limits.max_angular_velocity_rad_s * seconds)
        self._velocity = np.concatenate([linear, angular])
        return command

    def _slow_down(self, tick_ns: int, chunk: Chunk) -> Command:
        """Nothing is planned while the arm moves: its motion fades out along its last direction."""
        length_ns = self._lasts_ns or chunk.period_ns
        if self._stopping_motion is not None and self._stopping_motion.over:
            self._stopping_motion = None
        if self._stopping_motion is None and self._velocity.any():
            self.late_chunks += 1
            if self._stopping is not None:
                self._stopping_motion = StoppingMotion(
                    self._velocity, self._stopping.time_ns(self._velocity, chunk.period_ns)
                )
        if self._stopping_motion is None:
            self._velocity = np.zeros(6)
            self._clock.spend(0)
            return self._open_loop.hold(tick_ns)
        covered_ns, self._velocity = self._stopping_motion.advance(length_ns)
        delta = self._stopping_motion.velocity * (covered_ns / length_ns)
        self._clock.spend(covered_ns)
        moves = (delta[:3], delta[3:], self._open_loop.gripper_opening_m)
        return self._open_loop.clamp(tick_ns, chunk, chunk.horizon - 1, moves, None)
