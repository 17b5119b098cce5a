"""What the console shows: pure functions from what is known to rich text. No ROS."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dtvla.errors import plain
from dtvla.policy.stopwatch import TIMINGS

WIDEST = 100
MARGIN = 3  # the terminal's echo of Ctrl-C must not wrap, or the panel could not be wiped away


@dataclass
class ConsoleState:
    """Everything the console knows.

    `kept` of the thought's `tokens` stood in the thought before. `latencies_ms` are the phases of the newest
    decision; `problems` the sentences of nodes that are not well.
    """

    task: str = ""
    instruction: str = ""
    seed: int = 0
    episode: int = 0
    step: int = 0
    max_steps: int = 0
    done: bool = False
    success: bool = False
    thought: str = ""
    tokens: int = 0
    kept: int = 0
    thinking: bool = False
    truncated: bool = False
    decision: int = 0
    latencies_ms: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Words come in messages: none of them may act on the terminal, or fill it."""
        self.task, self.instruction, self.thought = map(plain, (self.task, self.instruction, self.thought))
        self.problems = {plain(name): plain(words) for name, words in self.problems.items()}


def outcome(scene: ConsoleState) -> str:
    """How the episode stands, in one word or two."""
    if not scene.done:
        return "running" if scene.episode else "waiting for the first episode"
    return "solved" if scene.success else "not solved"


def latency_line(scene: ConsoleState) -> str:
    """Phase latencies in one line, as `vision 12 ms, prefill 80 ms, ...`."""
    return ", ".join(
        f"{name} {scene.latencies_ms[name]:.0f} ms" for name in TIMINGS if name in scene.latencies_ms
    )


def panel(scene: ConsoleState, columns: int) -> RenderableType:
    """The live picture of a terminal that is `columns` wide."""
    colour = {"solved": "green", "not solved": "red"}.get(outcome(scene), "cyan")
    head = Table.grid(expand=True)
    head.add_column(ratio=1)
    head.add_column(justify="right")
    head.add_row(
        Text(scene.instruction or "No instruction yet", style="bold"),
        Text(outcome(scene), style=f"bold {colour}"),
    )
    where = f"task {scene.task}, seed {scene.seed}, episode {scene.episode}, "
    where += f"step {scene.step} of {scene.max_steps}"
    bar = ProgressBar(total=max(scene.max_steps, 1), completed=scene.step, complete_style=colour)
    thought = Text(scene.thought, style="white")
    if scene.thinking:
        thought.append(" ▌", style="blink cyan")
    if scene.truncated:
        thought.append("  (cut at the token limit)", style="yellow")
    rows: list[RenderableType] = [head, Text(where, style="dim"), bar, Text()]
    tokens = f"Decision {scene.decision}, {scene.tokens} tokens"
    tokens += f", {scene.kept} kept from the last thought" if scene.kept else ""
    rows += [Text(tokens, style="dim"), thought, Text()]
    rows.append(Text(latency_line(scene) or "no decision yet", style="dim"))
    rows += [Text(f"{name}: {words}", style="red") for name, words in sorted(scene.problems.items())]
    width = min(WIDEST, columns - MARGIN)
    title = "DeepThinkVLA thinks aloud"
    return Panel(Group(*rows), title=title, border_style=colour, padding=(1, 2), width=width)


def thought_line(scene: ConsoleState) -> str:
    """A finished thought as one plain line, for logs and pipes."""
    cut = " (cut at the token limit)" if scene.truncated else ""
    total = scene.latencies_ms.get("total")
    took = f" [{total:.0f} ms]" if total is not None else ""
    return f"step {scene.step:3d}/{scene.max_steps}  {scene.thought}{cut}{took}"


def episode_line(scene: ConsoleState) -> str:
    """The begin or the end of an episode as one plain line."""
    name = f"Episode {scene.episode} ({scene.task}, seed {scene.seed})"
    if scene.done:
        return f"{name}: {outcome(scene)} after {scene.step} steps."
    return f"{name}: {scene.instruction}"
