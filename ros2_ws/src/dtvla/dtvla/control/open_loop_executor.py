"""Decides, tick by tick, what the arm is told: a row of the newest chunk, a hold, or nothing yet.

The whole behaviour of the controller without any ROS in it; the node only moves messages in and out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import NS_PER_S, Chunk, row_at
from dtvla.control.limits.cartesian import Limits, check_age, check_chunk, clamp_gripper, clamp_length


class ControllerState(Enum):
    """What the controller is doing, as shown in its diagnostics."""

    WAITING = "waiting for the first chunk"
    EXECUTING = "executing"
    SLOWING_DOWN = "slowing down: the next chunk is late"
    HOLDING = "holding: the newest chunk is used up"
    SUSPENDED = "holding: a watchdog says why"
    STOPPED = "stopped: /clear_stop releases the arm"


@dataclass(frozen=True)
class Command:
    """What the arm does during one control period.

    Attributes:
        tick_ns: the tick this answers.
        period_ns: time to which translation and rotation belong; 0 for a hold.
        decision_id, row: where it was taken from (0, 0 for a hold before any chunk).
        translation: [3] metres, base frame.
        rotation: [3] axis-angle in radians, base frame.
        gripper_opening_m: commanded opening.
        raw_action: [7] the policy's own action, or None when the command is not exactly that.
        hold: True when the arm stays where it is.
    """

    tick_ns: int
    period_ns: int
    decision_id: int
    row: int
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    gripper_opening_m: float
    raw_action: NDArray[np.float64] | None
    hold: bool


@dataclass
class OpenLoopExecutor:
    """Keeps the newest good chunk and answers ticks.

    Args:
        limits: what is let through.
        lockstep: True when the world waits for us, so that a tick without a row is left unanswered
            until its chunk comes; False answers every tick at once, with a hold if need be.
        max_age_s: a chunk whose image is older than this on arrival is refused (real time only).
        gripper_opening_m: what a hold commands before anything else is known.
    """

    limits: Limits
    lockstep: bool
    max_age_s: float
    gripper_opening_m: float
    chunk: Chunk | None = None
    stopped: bool = False
    clamped: int = 0
    _newest_id: int = 0
    _tick_ns: int | None = field(default=None, repr=False)

    @property
    def state(self) -> ControllerState:
        if self.stopped:
            return ControllerState.STOPPED
        if self.chunk is None:
            return ControllerState.WAITING
        live = self._tick_ns is None or row_at(self.chunk, self._tick_ns) is not None
        return ControllerState.EXECUTING if live else ControllerState.HOLDING

    def offer(self, chunk: Chunk, now_ns: int | None = None) -> str | None:
        """Takes a chunk in; returns the sentence why not when it is refused (the old one then stays).

        Its age counts at `now_ns`; without that, at the newest tick.
        """
        if chunk.decision_id < self._newest_id:
            return (
                f"Decision {chunk.decision_id} came after decision {self._newest_id}; decisions never go "
                "backwards, so it is ignored. Is a second policy running?"
            )
        sentence = check_chunk(chunk, self.limits)
        now_ns = self._tick_ns if now_ns is None else now_ns
        if sentence is None and not self.lockstep and now_ns is not None:
            sentence = check_age(chunk.stamp_ns, now_ns, self.max_age_s)
        if sentence is not None:
            return sentence
        self._newest_id = chunk.decision_id
        self.chunk = chunk
        return None

    def forget_policy(self) -> None:
        """The policy is gone: its chunk is dropped and a new process may count from 1 again."""
        self.chunk = None
        self._newest_id = 0

    def stop(self) -> None:
        """Latches: from now on every answer is a hold, until `clear_stop`."""
        self.stopped = True

    def clear_stop(self) -> None:
        """Releases the latch. In real time the arm then waits for a chunk made from a new look.

        In lockstep the chunk is kept: the world moved only by held ticks, and waits for its rows.
        """
        self.stopped = False
        if not self.lockstep:
            self.chunk = None

    def measure_gripper(self, opening_m: float) -> None:
        """Takes the measured opening for holds, as long as nothing has been commanded yet."""
        if self.chunk is None and np.isfinite(opening_m):
            self.gripper_opening_m = clamp_gripper(opening_m, self.limits)

    def tick(self, tick_ns: int) -> Command | None:
        """The command for the tick at `tick_ns`, or None when a lockstep world has to wait."""
        self._tick_ns = tick_ns
        if self.stopped:
            return self.hold(tick_ns)
        row = row_at(self.chunk, tick_ns) if self.chunk is not None else None
        if self.chunk is not None and row is not None:
            return self._execute(self.chunk, row, tick_ns)
        return None if self.lockstep else self.hold(tick_ns)

    def _execute(self, chunk: Chunk, row: int, tick_ns: int) -> Command:
        wanted = (chunk.translations[row], chunk.rotations[row], float(chunk.gripper_openings[row]))
        return self.clamp(tick_ns, chunk, row, wanted, chunk.raw_actions[row])

    def clamp(
        self,
        tick_ns: int,
        chunk: Chunk,
        row: int,
        wanted: tuple[NDArray[np.float64], NDArray[np.float64], float],
        raw_action: NDArray[np.float64] | None,
    ) -> Command:
        """The command for what is wanted, within the limits.

        Args:
            tick_ns: that it answers.
            chunk, row: from which it comes.
            wanted: translation [3] m and rotation [3] rad per period of the chunk, opening in m.
            raw_action: [7] the policy's own action when it says exactly that; dropped when clamped.
        """
        seconds = chunk.period_ns / NS_PER_S
        given = (
            clamp_length(wanted[0], self.limits.max_linear_velocity_m_s * seconds),
            clamp_length(wanted[1], self.limits.max_angular_velocity_rad_s * seconds),
            clamp_gripper(wanted[2], self.limits),
        )
        unchanged = given[0] is wanted[0] and given[1] is wanted[1] and given[2] == wanted[2]
        self.clamped += not unchanged
        self.gripper_opening_m = given[2]
        raw = raw_action if unchanged else None
        return Command(tick_ns, chunk.period_ns, chunk.decision_id, row, *given, raw_action=raw, hold=False)

    def hold(self, tick_ns: int) -> Command:
        """The command to stay, with the gripper as it was."""
        decision = self.chunk.decision_id if self.chunk is not None else 0
        zero = np.zeros(3)
        return Command(
            tick_ns, 0, decision, 0, zero, zero, self.gripper_opening_m, raw_action=None, hold=True
        )
