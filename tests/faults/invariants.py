"""Were the limits kept? Answered from published commands alone, with arithmetic of its own.

Nothing here comes from `dtvla.control`: a limiter must not be its own judge. Commands are samples, and when
the controller read its clock is known only roughly: some time before the command was written. The bounds say
so instead of hiding it in a factor:

- A command is written after its tick began, and its tick began after the command before was written. That
  much is certain. How long after cannot be seen; it is taken to be no more than the worst irregularity of the
  writings within 10 ticks around (`doubt`): on an idle machine 0.3 ms, on a crowded one whole ticks.
- Velocity: displacement over 1 to 50 ticks against the longest time that they can have taken; certain.
- Acceleration: change of the mean velocity between two neighbouring windows of 1, 2 and 5 ticks against
  A (T1 + T2) / 2, plus what the doubt can feign. Windows of which less than half is certain are not judged
  (`unjudged` counts them); `sharpness` is the jump of velocity that would have been noticed in the others.
- Jerk: a third difference against J times its support. At 100 Hz this says nothing beyond acceleration:
  two accelerations within A differ by at most 2 A = 13 m/s², which a jerk of 3250 m/s³ reaches in 4 ms. It
  is computed all the same, and bites at 1 kHz.
- A pause of more than 0.15 s leaves the arm at its last target: what follows must begin at rest. Where the
  listener lost commands there was no pause: the way across is judged against the speed, and no more.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

VELOCITY_TICKS = (1, 2, 5, 10, 20, 50)
ACCELERATION_TICKS = (1, 2, 5)
PAUSE_S = 0.15
ROUNDING = 1e-6  # of a bound
RESOLUTION_M = 1e-9
BEAT_SHARE = 0.05  # of a tick: irregularity that cannot be seen in the times of writing
AROUND = 10  # ticks before and behind that tell how regular the writings are


@dataclass(frozen=True)
class Rates:
    """Largest velocity, acceleration and jerk of one quantity (m or rad)."""

    velocity: float
    acceleration: float
    jerk: float


@dataclass(frozen=True)
class Allowed:
    """What an arm may be told.

    Attributes:
        linear, angular: of the end effector's target.
        lower, upper: corners of the workspace, m in the base frame.
        opening: range of the gripper, m.
        speed_m_s, force_n: largest of the gripper.
        tick_s: time between two commands.
        frame: of the poses.
    """

    linear: Rates
    angular: Rates
    lower: tuple[float, float, float] = (0.15, -0.55, -0.02)
    upper: tuple[float, float, float] = (0.8, 0.55, 0.8)
    opening: tuple[float, float] = (0.0, 0.08)
    speed_m_s: float = 0.2
    force_n: float = 70.0
    tick_s: float = 0.01
    frame: str = "panda_link0"


# config/robots/panda.yaml says 0.25 m/s and 0.6 rad/s; accelerations and jerks are half of what libfranka 0.9
# (rate_limiting.h) allows a Panda. Written out here on purpose.
PANDA = Allowed(Rates(0.25, 6.5, 3250.0), Rates(0.6, 12.5, 6250.0))
# The simulator's deltas: LIBERO's full scale as the controller node limits it.
DELTA_M_S, DELTA_RAD_S, DELTA_PERIOD_S = 1.8, 18.0, 0.05


@dataclass(frozen=True)
class Exceeded:
    """One limit that was not kept.

    Attributes:
        what: in words.
        figure, bound: as computed; `bound` includes what unknown times can feign.
        time_s: of the command.
    """

    what: str
    figure: float
    bound: float
    time_s: float

    def __str__(self) -> str:
        return f"{self.what}: {self.figure:.4g}, allowed {self.bound:.4g}"


@dataclass(frozen=True)
class _Sample:
    time_s: float
    late_s: float
    position: Vector
    quaternion: Vector  # w x y z


@dataclass
class Judge:
    """Takes target poses one after the other.

    Attributes:
        allowed: the limits.
        sharpness: [2] smallest jump of velocity (m/s) that would have been noticed, for every judged tick.
        unjudged, judged: ticks whose times were too uncertain, and certain enough, for the shortest window.
    """

    allowed: Allowed = PANDA
    sharpness: list[float] = field(default_factory=list)
    unjudged: int = 0
    _seen: deque[_Sample] = field(default_factory=lambda: deque(maxlen=2 + max(VELOCITY_TICKS)))
    _sure: deque[_Sample] = field(default_factory=lambda: deque(maxlen=1 + 2 * max(ACCELERATION_TICKS)))

    @property
    def judged(self) -> int:
        return len(self.sharpness)

    def begin(self) -> None:
        """Another controller speaks: its first target has no predecessor."""
        self._seen.clear()
        self._sure.clear()

    def finish(self) -> list[Exceeded]:
        """Judges what still waited for its successors."""
        found = []
        for left in range(min(AROUND, len(self._seen)), 0, -1):
            found += self._judge_changes(len(self._seen) - left)
        return found

    def pose(
        self, time_s: float, frame: str, position: Vector, quaternion: Vector, *, lost: bool = False
    ) -> list[Exceeded]:
        """Judges a target pose that was written at `time_s` (Unix time by the writer's machine).

        `lost`: commands between the one before and this were not heard.
        """
        if not (np.isfinite(position).all() and np.isfinite(quaternion).all()):
            return [Exceeded("a pose with a value that is not finite", math.nan, 0.0, time_s)]
        found = []
        length = float(np.linalg.norm(quaternion))
        if abs(length - 1.0) > 1e-6:
            found.append(Exceeded("length of the quaternion", length, 1.0, time_s))
        if frame != self.allowed.frame:
            found.append(Exceeded(f"a pose in frame '{frame}'", math.nan, 0.0, time_s))
        found += self._workspace(time_s, position)
        found += self._take(_Sample(time_s, 0.0, position, quaternion / length), lost)
        found += self._velocities()
        if len(self._seen) > AROUND:
            found += self._judge_changes(len(self._seen) - 1 - AROUND)
        return found

    def gripper(self, time_s: float, opening: float, speed: float, force: float) -> list[Exceeded]:
        """Judges what the gripper is told."""
        allowed, found = self.allowed, []
        for what, figure, low, high in (
            ("opening of the gripper", opening, *allowed.opening),
            ("speed of the gripper", speed, 0.0, allowed.speed_m_s),
            ("force of the gripper", force, 0.0, allowed.force_n),
        ):
            if not low <= figure <= high:  # NaN too
                found.append(Exceeded(what, figure, high if figure > high else low, time_s))
        return found

    def delta(self, time_s: float, translation: Vector, rotation: Vector, opening: float) -> list[Exceeded]:
        """Judges a command to the simulated world: one control period of 50 ms."""
        found = []
        for what, vector, most in (
            ("linear velocity", translation, DELTA_M_S),
            ("angular velocity", rotation, DELTA_RAD_S),
        ):
            figure = float(np.linalg.norm(vector)) / DELTA_PERIOD_S
            if not figure <= most * (1 + ROUNDING):
                found.append(Exceeded(what, figure, most, time_s))
        return found + self.gripper(time_s, opening, 0.0, 0.0)

    def _workspace(self, time_s: float, position: Vector) -> list[Exceeded]:
        """Inside the box; from outside only closer."""
        lower, upper = np.array(self.allowed.lower), np.array(self.allowed.upper)
        if self._seen:
            lower = np.minimum(lower, self._seen[-1].position)
            upper = np.maximum(upper, self._seen[-1].position)
        found = []
        for axis, value, low, high in zip("xyz", position, lower, upper, strict=True):
            if not low - RESOLUTION_M <= value <= high + RESOLUTION_M:
                bound = float(high if value > high else low)
                found.append(Exceeded(f"workspace, {axis}", float(value), bound, time_s))
        return found

    def _take(self, sample: _Sample, lost: bool) -> list[Exceeded]:
        tick_s, seen, found = self.allowed.tick_s, self._seen, []
        if seen and lost:
            found = self.finish()
            seen.append(sample)
            found += self._velocities()
            self.begin()
        elif seen and sample.time_s - seen[-1].time_s > PAUSE_S:
            found = self.finish()
            last = seen[-1]
            self.begin()
            for back in (3, 2, 1):  # the arm rests at its last target
                seen.append(_Sample(sample.time_s - back * tick_s, 0.0, last.position, last.quaternion))
        seen.append(sample)
        return found

    def _judge_changes(self, index: int) -> list[Exceeded]:
        """Accelerations and jerks up to the sample at `index`, whose neighbours are known now."""
        seen, tick_s = self._seen, self.allowed.tick_s
        times = [sample.time_s for sample in list(seen)[max(0, index - AROUND) : index + AROUND + 1]]
        worst_s = max((abs(gap - tick_s) for gap in np.diff(times)), default=0.0)
        gap_s = seen[index].time_s - seen[index - 1].time_s if index else math.inf
        late_s = min(worst_s + BEAT_SHARE * tick_s, max(gap_s, BEAT_SHARE * tick_s))
        self._sure.append(replace(seen[index], late_s=late_s))
        return self._accelerations() + self._jerks()

    def _velocities(self) -> list[Exceeded]:
        seen, found = self._seen, []
        last = seen[-1]
        for ticks in VELOCITY_TICKS:
            if len(seen) <= ticks:
                break
            first = seen[-1 - ticks]
            before_s = (
                seen[-2 - ticks].time_s if len(seen) > 1 + ticks else first.time_s - self.allowed.tick_s
            )
            longest_s = last.time_s - before_s
            for what, vector, rates in self._ways(first, last):
                way, most = float(np.linalg.norm(vector)), rates.velocity * longest_s
                if way > most * (1 + ROUNDING) + RESOLUTION_M:
                    found.append(
                        Exceeded(
                            f"{what} velocity over {ticks} ticks",
                            way / longest_s,
                            rates.velocity,
                            last.time_s,
                        )
                    )
        return found

    def _accelerations(self) -> list[Exceeded]:
        seen, found = self._sure, []
        for ticks in ACCELERATION_TICKS:
            if len(seen) <= 2 * ticks:
                break
            first, middle, last = seen[-1 - 2 * ticks], seen[-1 - ticks], seen[-1]
            doubts = [_doubt(first, middle), _doubt(middle, last)]
            if max(doubts) > 0.5:
                self.unjudged += ticks == 1
                continue
            times = [middle.time_s - first.time_s, last.time_s - middle.time_s]
            ways = zip(self._ways(first, middle), self._ways(middle, last), strict=True)
            for (what, one, rates), (_, other, _) in ways:
                change = float(np.linalg.norm(other / times[1] - one / times[0]))
                feigned = sum(
                    float(np.linalg.norm(way)) / time_s * doubt / (1 - doubt)
                    for way, time_s, doubt in zip((one, other), times, doubts, strict=True)
                )
                real = rates.acceleration * sum(times) / 2 * (1 + max(doubts))
                if ticks == 1 and what == "linear":
                    self.sharpness.append(real + feigned)
                if change > (real + feigned) * (1 + ROUNDING) + 2 * RESOLUTION_M / min(times):
                    found.append(
                        Exceeded(
                            f"{what} acceleration over {ticks} ticks (change of velocity)",
                            change,
                            real + feigned,
                            last.time_s,
                        )
                    )
        return found

    def _jerks(self) -> list[Exceeded]:
        if len(self._sure) < 4:
            return []
        points = [self._sure[index] for index in range(-4, 0)]
        pairs = list(pairwise(points))
        doubt = max(_doubt(first, last) for first, last in pairs)
        if doubt > 0.5:
            return []
        times = [last.time_s - first.time_s for first, last in pairs]
        found = []
        for (what, one, rates), (_, two, _), (_, three, _) in zip(
            *(self._ways(first, last) for first, last in pairs), strict=True
        ):
            speeds = [one / times[0], two / times[1], three / times[2]]
            steps = [(times[0] + times[1]) / 2, (times[1] + times[2]) / 2]
            change = float(
                np.linalg.norm((speeds[2] - speeds[1]) / steps[1] - (speeds[1] - speeds[0]) / steps[0])
            )
            fastest = max(float(np.linalg.norm(speed)) for speed in speeds)
            feigned = 4 * fastest * doubt / (1 - doubt) / min(steps)
            real = rates.jerk * sum(times) / 2 * (1 + doubt)
            if change > (real + feigned) * (1 + ROUNDING) + 8 * RESOLUTION_M / min(steps) ** 2:
                found.append(
                    Exceeded(
                        f"{what} jerk (change of acceleration)", change, real + feigned, points[-1].time_s
                    )
                )
        return found

    def _ways(self, first: _Sample, last: _Sample) -> list[tuple[str, Vector, Rates]]:
        return [
            ("linear", last.position - first.position, self.allowed.linear),
            ("angular", turn_between(first.quaternion, last.quaternion), self.allowed.angular),
        ]


def _doubt(first: _Sample, last: _Sample) -> float:
    """By which share the time between two ticks may differ from the time between their writings."""
    time_s = last.time_s - first.time_s
    return max(first.late_s, last.late_s) / time_s if time_s > 0 else math.inf


def turn_between(first: Vector, last: Vector) -> Vector:
    """Rotation vector [3] (rad, base frame) from one unit quaternion (w x y z) to another."""
    w0, v0 = first[0], -first[1:]
    w1, v1 = last[0], last[1:]
    w = w1 * w0 - float(v1 @ v0)
    v = w1 * v0 + w0 * v1 + np.cross(v1, v0)
    if w < 0:
        w, v = -w, -v
    sine = float(np.linalg.norm(v))
    if sine == 0.0:
        return np.zeros(3)
    return np.asarray(v * (2.0 * math.atan2(sine, w) / sine))
