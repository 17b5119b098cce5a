"""The console: shows the thought growing word by word, the phase latencies and the state of the task.

On a terminal it is a live panel; in a pipe or a log it prints one line per thought.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rich.console import Console
from rich.live import Live

from dtvla.nodes.common import qos
from dtvla.nodes.common.process import run
from dtvla.nodes.viewers.console_view import ConsoleState, episode_line, panel, thought_line
from dtvla.policy.stopwatch import TIMINGS
from dtvla_msgs.msg import ActionChunk, Reasoning, TaskState

REFRESH_HZ = 12.0


class ConsoleNode(Node):
    """Listens to /policy/reasoning, /policy/action_chunk, /task_state and /diagnostics; publishes nothing."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__("console_node")
        self._console = console or Console()
        self._scene = ConsoleState()
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self.create_timer(1.0 / REFRESH_HZ, self._refresh, clock=steady)
        self.create_subscription(TaskState, "task_state", self._on_state, qos.LATCHED)
        self.create_subscription(Reasoning, "policy/reasoning", self._on_reasoning, qos.STREAM)
        self.create_subscription(ActionChunk, "policy/action_chunk", self._on_chunk, qos.COMMAND)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)

    def close(self) -> None:
        """Gives the terminal back."""
        if self._live is not None:
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._live.stop()
            self._live = None

    def _on_state(self, message: TaskState) -> None:
        before = self._scene
        self._scene = replace(
            before,
            task=message.task_name,
            instruction=message.instruction,
            seed=message.seed,
            episode=message.episode,
            step=message.step,
            max_steps=message.max_steps,
            done=message.done,
            success=message.success,
        )
        if (before.episode, before.done) != (message.episode, message.done):
            self._print(episode_line(self._scene))

    def _on_reasoning(self, message: Reasoning) -> None:
        self._scene = replace(
            self._scene,
            decision=message.decision_id,
            thought=message.text,
            tokens=message.tokens,
            kept=message.kept_tokens,
            thinking=not message.finished,
            truncated=message.truncated,
        )

    def _on_chunk(self, message: ActionChunk) -> None:
        if message.hold:
            return
        total = 1000 * message.inference_time.sec + message.inference_time.nanosec / 1e6
        latencies = {**self._scene.latencies_ms, "total": total}
        self._scene = replace(
            self._scene,
            decision=message.decision_id,
            thought=message.thought,
            thinking=False,
            truncated=message.thought_truncated,
            latencies_ms=latencies,
        )
        if self._live is None:
            self._print(thought_line(self._scene))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            problems = dict(self._scene.problems)
            problems.pop(status.name, None)
            if status.level != DiagnosticStatus.OK:
                problems[status.name] = status.message
                if self._scene.problems.get(status.name) != status.message:
                    self._print(f"{status.name}: {status.message}")
            self._scene = replace(self._scene, problems=problems)
            if status.name == "policy_node":
                self._take_latencies({item.key: item.value for item in status.values})

    def _take_latencies(self, values: dict[str, str]) -> None:
        found = {name: float(values[f"{name}_ms"]) for name in TIMINGS if f"{name}_ms" in values}
        self._scene = replace(self._scene, latencies_ms={**self._scene.latencies_ms, **found})

    def _refresh(self) -> None:
        if self._live is None or not self._scene.episode:
            return  # until the first episode the launcher has the terminal
        if not self._live.is_started:
            self._live.start()
        self._live.update(panel(self._scene, self._console.width), refresh=True)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def main() -> int:
    """Runs the node."""
    return run(ConsoleNode)


if __name__ == "__main__":
    raise SystemExit(main())
