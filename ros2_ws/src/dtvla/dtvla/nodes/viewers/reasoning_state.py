"""What the policy said last and what the controller makes of it, for those who show it. No ROS.

Times are seconds of a steady clock: a display goes on when simulated time stands still.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTROLLER_TIMEOUT_S = 3.0  # it reports once a second


@dataclass
class ReasoningState:
    """The newest words.

    Attributes:
        silence_s: after so long without a word the policy's are forgotten.
        instruction: what the policy was told.
        thought: what it thinks, as far as it has grown.
        before: the finished thought before that.
        tokens, kept: of the thought; how many were kept from the thoughts before.
        thinking: whether the thought is still growing.
        truncated: whether it was closed by force.
        decision: id of the newest decision.
        latency_ms: how long that took; None before the first.
        chapter: grows whenever what was said before is void: another instruction, or silence.
    """

    silence_s: float = 5.0
    instruction: str = ""
    thought: str = ""
    before: str = ""
    tokens: int = 0
    kept: int = 0
    thinking: bool = False
    truncated: bool = False
    decision: int = 0
    latency_ms: float | None = None
    chapter: int = 0
    _thought_id: int = 0
    _heard_s: float | None = None
    _state: str = ""
    _complaint: str = ""
    _state_s: float = 0.0

    def on_instruction(self, words: str) -> None:
        """The policy starts afresh, also when it is told the same once more."""
        self._forget()
        self.instruction = words

    def on_thought(
        self,
        decision: int,
        text: str,
        now_s: float,
        *,
        tokens: int,
        kept: int,
        finished: bool,
        truncated: bool,
    ) -> None:
        """The thought of `decision` has grown to `text`."""
        if decision != self._thought_id:
            self._thought_id = decision
            self.before = self.before if self.thinking else self.thought
        self.thought, self.tokens, self.kept = text, tokens, kept
        self.thinking, self.truncated = not finished, truncated
        self._heard_s = now_s

    def on_decision(self, decision: int, instruction: str, latency_ms: float, now_s: float) -> None:
        """A chunk came that is no hold."""
        if instruction != self.instruction:  # a goal of the action: it is not on the topic
            self.instruction = instruction
            if self._thought_id == decision:  # its thought came first
                self.chapter, self.before = self.chapter + 1, ""
            else:
                self._forget()
        self.decision, self.latency_ms = decision, latency_ms
        self._heard_s = now_s

    def on_controller(self, state: str, complaint: str, now_s: float) -> None:
        """The controller reported its state and, where it is not well, why."""
        self._state, self._complaint, self._state_s = state, complaint, now_s

    def look_at_clock(self, now_s: float) -> None:
        """Forgets what is too old."""
        if self._heard_s is not None and now_s - self._heard_s > self.silence_s:
            self._forget()
        if self._state and now_s - self._state_s > CONTROLLER_TIMEOUT_S:
            self._state, self._complaint = "", ""

    @property
    def controller(self) -> tuple[str, str]:
        """Its state and its complaint; ("", "") when it does not report."""
        return self._state, self._complaint

    @property
    def kept_from(self) -> str:
        """The thought whose words were taken over; empty when every word was generated anew."""
        return self.before if self.kept else ""

    @property
    def decision_line(self) -> str:
        """Which decision, and how long it took; empty before the first."""
        return "" if self.latency_ms is None else f"decision {self.decision}, {self.latency_ms:.0f} ms"

    @property
    def thought_line(self) -> str:
        """How the thought came about; empty without one."""
        if not self.thought:
            return ""
        cut = ", cut at its limit" if self.truncated else ""
        verb = "thinking: " if self.thinking else ""
        return f"{verb}{self.tokens} tokens, {self.kept} kept{cut}"

    def _forget(self) -> None:
        self.chapter += 1
        self.thought = self.before = ""
        self.tokens = self.kept = self.decision = self._thought_id = 0
        self.thinking = self.truncated = False
        self.latency_ms = self._heard_s = None
