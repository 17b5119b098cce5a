"""The rule by which lifecycle nodes are brought alive: no ROS in here, and time is passed in.

All nodes are configured at the same time, as it takes long and concerns nobody else. When every one of them
is, they are activated one after the other, in the given order: who listens comes before who speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum, IntEnum

START_TIMEOUT_S = 60.0  # for a process to appear
TRANSITION_TIMEOUT_S = 120.0  # a large policy loads, a scene is built
HEARTBEAT_S = 10.0
ASK_S = 0.5  # between two questions for the state of a node that has not answered yet
LAST_WORDS_S = 1.0  # the sentence of a node that refuses travels by another way than its refusal
PAUSE_S = 2.0  # between two looks at the nodes: longer, and we were the ones who stood still


class PrimaryState(IntEnum):
    """Primary states of a lifecycle node, numbered as in lifecycle_msgs/State."""

    UNCONFIGURED = 1
    INACTIVE = 2
    ACTIVE = 3
    FINALIZED = 4


class LifecycleRequest(Enum):
    """What a node can be asked."""

    GET_STATE = "get_state"
    CONFIGURE = "configure"
    ACTIVATE = "activate"


class BringUpPhase(IntEnum):
    """How far a node has come."""

    AWAITED = 0  # nobody has answered yet
    CONFIGURING = 1
    INACTIVE = 2
    ACTIVATING = 3
    ACTIVE = 4


_ASKED_TO = {BringUpPhase.CONFIGURING: "configure", BringUpPhase.ACTIVATING: "activate"}
_STARTS_IN = {PrimaryState.INACTIVE: BringUpPhase.INACTIVE, PrimaryState.ACTIVE: BringUpPhase.ACTIVE}


@dataclass(frozen=True)
class TimeLimits:
    """How long it may take, in seconds.

    Attributes:
        start_s: from the beginning until a node answers.
        transition_s: to configure, and to activate.
    """

    start_s: float = START_TIMEOUT_S
    transition_s: float = TRANSITION_TIMEOUT_S


@dataclass
class _Managed:
    """What is known of one node; times in seconds of our own clock."""

    heartbeat_s: float
    since_s: float  # when it came into its phase
    phase: BringUpPhase = BringUpPhase.AWAITED
    asked_s: float = -ASK_S
    heard_s: float = 0.0
    problem: tuple[float, str] = (0.0, "")  # when it was last heard of, and in which words
    refused_s: float | None = None
    silent: bool = False
    instances: set[bytes] = field(default_factory=set)


class BringUp:
    """Brings nodes alive in order, and notices who does not come, refuses, falls silent or comes back.

    It decides and does nothing itself: `step` says what is to be asked, the answers come back by `state_is`
    and `has_moved`, and what the nodes report on their own by `reports`.

    Args:
        tell: told in words what goes on.
        limits: how long it may take.
    """

    def __init__(
        self, tell: Callable[[str], None] = lambda _: None, limits: TimeLimits | None = None
    ) -> None:
        self.tell = tell
        self._failure = ""
        self._limits = limits or TimeLimits()
        self._nodes: dict[str, _Managed] = {}
        self._now_s = 0.0  # stands still while this process does, as in a debugger or a suspended machine
        self._looked_s: float | None = None

    @property
    def busy(self) -> bool:
        """Whether a node is still to be brought alive."""
        return any(node.phase < BringUpPhase.ACTIVE for node in self._nodes.values())

    @property
    def silent(self) -> dict[str, str]:
        """The active nodes that have not reported for longer than they may, each with words for it."""
        return {
            name: f"{name} has not reported for {node.heartbeat_s:g} s"
            for name, node in self._nodes.items()
            if node.silent
        }

    def take_failure(self) -> str:
        """Why a bring-up ended early, once; empty when none did."""
        words, self._failure = self._failure, ""
        return words

    def begin(self, nodes: Sequence[str], heartbeats_s: Mapping[str, float] | None = None) -> None:
        """Brings nodes alive, whatever was known of them: they have just been started, perhaps anew.

        Args:
            nodes: names, in the order of activation. Those that are known keep their place in it.
            heartbeats_s: how long a node may be silent once it is active, where it is not `HEARTBEAT_S`;
                those that are known keep theirs.
        """
        self._failure = ""
        limits_s = heartbeats_s or {}
        for name in nodes:
            node = _Managed(limits_s.get(name, HEARTBEAT_S), self._now_s)
            if name in self._nodes:
                known = self._nodes[name]
                node.heartbeat_s = limits_s.get(name, known.heartbeat_s)
                node.instances = known.instances
            self._nodes[name] = node

    def is_new(self, name: str, instances: Set[bytes]) -> bool:
        """Whether a new process has taken the place of one that had answered already.

        Args:
            name: the node.
            instances: its processes that discovery knows: also one that was killed, for some 20 s.
        """
        node = self._nodes.get(name)
        if node is None:
            return False
        new, known = instances - node.instances, bool(node.instances)
        node.instances |= new
        return bool(new) and known and node.phase > BringUpPhase.AWAITED

    def reports(self, name: str, problem: str = "") -> None:
        """A node has reported; `problem` is empty when it is well."""
        node = self._nodes.get(name)
        if node is None:
            return
        node.heard_s = self._now_s
        if problem:
            node.problem = (self._now_s, problem)
        if node.silent:
            node.silent = False
            self.tell(f"{name} reports again.")

    def state_is(self, name: str, state: int) -> list[tuple[str, LifecycleRequest]]:
        """A node has answered in which state it is; returns what is to be asked next."""
        node = self._nodes.get(name)
        if node is None or node.phase is not BringUpPhase.AWAITED:
            return []
        if state == PrimaryState.FINALIZED:
            self._fail(f"{name} has been shut down, and cannot be brought up again: end its process.")
        elif state == PrimaryState.UNCONFIGURED:
            self._enter(node, BringUpPhase.CONFIGURING)
            return [(name, LifecycleRequest.CONFIGURE)]
        elif state in _STARTS_IN:  # somebody else has brought it so far
            self._enter(node, _STARTS_IN[PrimaryState(state)])
        return []  # in a transition that somebody else began: it is asked again

    def has_moved(self, name: str, success: bool) -> None:
        """A node has answered whether the transition that it was asked for succeeded."""
        node = self._nodes.get(name)
        if node is None or node.phase not in _ASKED_TO:
            return
        if success:
            self._enter(node, BringUpPhase(node.phase + 1))
        else:
            node.refused_s = self._now_s

    def step(self, now_s: float) -> list[tuple[str, LifecycleRequest]]:
        """Looks at all nodes; returns what is to be asked now.

        Args:
            now_s: a monotonic clock. Call it at least every `PAUSE_S`: longer pauses do not count.
        """
        if self._looked_s is not None:
            self._now_s += min(now_s - self._looked_s, PAUSE_S)
        self._looked_s = now_s
        requests = []
        for name, node in list(self._nodes.items()):
            if self._gives_up(name, node):
                break
            if node.phase is BringUpPhase.AWAITED and self._now_s - node.asked_s >= ASK_S:
                node.asked_s = self._now_s
                requests.append((name, LifecycleRequest.GET_STATE))
            elif node.phase is BringUpPhase.ACTIVE and not node.silent:
                node.silent = self._now_s - node.heard_s > node.heartbeat_s
        return requests + self._next_activation()

    def _next_activation(self) -> list[tuple[str, LifecycleRequest]]:
        """The first node that is not active yet, if none is still to be configured."""
        waiting = [(name, node) for name, node in self._nodes.items() if node.phase < BringUpPhase.ACTIVE]
        if not waiting or min(node.phase for _, node in waiting) < BringUpPhase.INACTIVE:
            return []
        name, node = waiting[0]
        if node.phase is not BringUpPhase.INACTIVE:
            return []
        self.tell(f"activating {name}")
        self._enter(node, BringUpPhase.ACTIVATING)
        return [(name, LifecycleRequest.ACTIVATE)]

    def _gives_up(self, name: str, node: _Managed) -> bool:
        """Whether a node refused or took too long; then its sentence is the failure."""
        took_s = self._now_s - node.since_s
        if node.refused_s is not None:
            problem_s, words = node.problem
            spoke = bool(words) and problem_s >= node.since_s
            if spoke or self._now_s - node.refused_s > LAST_WORDS_S:
                return self._fail(words or f"{name} refused to start; its log says why.")
        elif node.phase is BringUpPhase.AWAITED and took_s > self._limits.start_s:
            return self._fail(
                f"{name} did not appear within {self._limits.start_s:g} s. Does its process run, in the same "
                "ROS domain and namespace?"
            )
        elif node.phase in _ASKED_TO and took_s > self._limits.transition_s:
            return self._fail(
                f"{name} was asked to {_ASKED_TO[node.phase]} and did not answer within "
                f"{self._limits.transition_s:g} s."
            )
        return False

    def _fail(self, sentence: str) -> bool:
        """Ends the bring-up: nobody waits any longer for those that are not active."""
        self._failure = sentence
        self._nodes = {name: node for name, node in self._nodes.items() if node.phase is BringUpPhase.ACTIVE}
        return True

    def _enter(self, node: _Managed, phase: BringUpPhase) -> None:
        node.phase, node.since_s, node.refused_s = phase, self._now_s, None
        if phase is BringUpPhase.ACTIVE:
            node.heard_s = self._now_s  # a transition may take long, and its node is silent meanwhile
