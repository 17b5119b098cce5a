"""Why the arm must hold now: all watches of the controller node, with their words in its diagnostics."""

from __future__ import annotations

from dtvla.control.action_chunk import NS_PER_S, Chunk
from dtvla.control.watchdogs import ClockWatch, Silence, StampWatch
from dtvla.nodes.common.diagnostics import Level, Reporter
from dtvla.nodes.common.parameters import Settings

HOLDS = "The arm holds."
STILL = "The clock stands still, so the age of nothing can be told. Look after what publishes /clock."


class SafetyMonitor:
    """Hears what comes in, and says whether the arm may move.

    Args:
        report: where problems are told.
        settings: of the controller node.
        arm: whether an arm is told target poses; a simulated world brings its own ticks instead.
        joints: whether joint states are needed.
    """

    def __init__(self, report: Reporter, settings: Settings, *, arm: bool, joints: bool) -> None:
        self._report = report
        self._lockstep = settings.flag("lockstep")
        timeout_s = settings.number("robot_timeout_s")
        self.pose = Silence(
            "the arm's pose (ee_pose)", timeout_s, "Start the robot's driver, or remap its topic."
        )
        self.joints = Silence(
            "the arm's joints (joint_states)",
            timeout_s,
            "Start the robot's driver, or set joint_limits false.",
        )
        age_s = 0.0 if self._lockstep else settings.number("max_state_age_s")
        self.pose_stamps = StampWatch("ee_pose", age_s if arm else 0.0)
        timed = arm and not self._lockstep  # a world in lockstep is silent while it waits for us
        self._robot = [self.pose] * timed + [self.joints] * (timed and joints)
        self._policy_timeout_s = settings.number("policy_timeout_s")
        self._policy = Silence("the policy", self._policy_timeout_s, "Its diagnostics say more.")
        self._planning = False  # the newest chunk was a decision, so another must follow
        self._clock = ClockWatch(settings.number("clock_jump_s"))
        self._rivals = ""
        self._still = False  # the node's clock stands still

    def hear_chunk(self, chunk: Chunk, now_s: float) -> None:
        """A good chunk came at `now_s` (steady time)."""
        self._planning = not chunk.hold
        self._policy.hear(now_s)
        self._report.solved("clock")

    def forget_policy(self) -> None:
        """The policy is gone; its successor takes its time to start."""
        self._planning = False

    def clock_jumped(self, now_ns: int, now_s: float) -> bool:
        """Whether the node's clock was set since the last call; what was planned is void then."""
        jump_s = self._clock.jump_s(now_ns, now_s)
        self._still = self._clock.still_s is not None and not self._lockstep
        self._tell("still", STILL if self._still else "")
        if jump_s is None or self._lockstep:
            return False
        self._report.problem(
            "clock",
            f"The clock jumped by {jump_s:+.3g} s; what was planned is dropped, and the arm holds until a "
            "chunk is made from a new look.",
            Level.WARNING,
        )
        return True

    def rivals(self, sentence: str) -> None:
        """Somebody else publishes where only one may; empty when nobody does."""
        self._rivals = sentence
        self._tell("rivals", sentence)

    def suspended(self, now_s: float) -> bool:
        """Whether the arm must hold at `now_s` (steady time)."""
        silent = [sentence for watch in self._robot if (sentence := watch.sentence(now_s)) is not None]
        self._tell("robot", " ".join(silent))
        self._watch_policy(now_s)
        return bool(silent or self._rivals or self._still)

    def _watch_policy(self, now_s: float) -> None:
        """A silent policy needs no suspension: its chunk runs out, and the arm slows down by itself."""
        sentence = None
        if self._planning and not self._lockstep:
            sentence = self._policy.sentence(now_s)
        self._tell("policy", sentence or "", Level.WARNING)

    def _tell(self, key: str, sentence: str, level: Level = Level.ERROR) -> None:
        if sentence:
            self._report.problem(key, f"{sentence} {HOLDS}", level)
        else:
            self._report.solved(key)


def monotonic_tick(now_ns: int, last_ns: int | None) -> int:
    """A tick's time on the node's clock: later than the one before, although simulated time goes in steps.

    A clock that was set back by more than a second is followed.
    """
    if last_ns is None or now_ns > last_ns or last_ns - now_ns > NS_PER_S:
        return now_ns
    return last_ns + 1
