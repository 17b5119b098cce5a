"""The HTML of a report. Everything that comes from a record goes through `escape`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from html import escape

from dtvla.evaluation.report.episode_replay import FRAME_RATE_HZ
from dtvla.evaluation.report.reported_evaluation import ReportedEvaluation
from dtvla.evaluation.results import OUTCOMES, EpisodeResult, wilson
from dtvla.resources import resource

FOOTER = (
    "A click on an episode shows what the policy thought, step by step (20 steps are one second), and its "
    "video where there is one. Words that stood in the thought before are grey. Videos are the recorded "
    "actions, executed again. Intervals are Wilson's, 95 %."
)
STAND_IN = "stand-in"  # in the label of assets that are not the benchmark's own


def page(
    evaluation: ReportedEvaluation,
    replays: Mapping[str, str],
    others: Collection[str],
    command: str,
    thoughts: str,
) -> str:
    """The whole page.

    Args:
        evaluation: what it is about.
        replays: paths of videos, relative to the page, by episode.
        others: episodes whose video shows another world.
        command: that asks for the same episodes.
        thoughts: see `report.packed_thoughts`.
    """
    head = evaluation.head
    title = f"{head['policy']} on {head['suite']}"
    rate = f"{FRAME_RATE_HZ:g}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{resource("report/page.css").read_text()}</style>
</head>
<body data-rate="{rate}">
<main>
<h1>{escape(title)}</h1>
<p class="faint">Closed-loop evaluation in simulation</p>
{_warnings(evaluation)}
<section class="top">
{_rate(evaluation.results)}
{_facts(evaluation, command)}
</section>
<section>
<h2>By task</h2>
<div class="scroll">{_tasks(evaluation.results)}</div>
</section>
<section>
<h2>Episodes</h2>
{_filters(evaluation.results, replays)}
<div class="scroll">{_episodes(evaluation.results, replays, others)}</div>
</section>
<footer>{FOOTER}</footer>
</main>
<script type="text/plain" id="thoughts">{thoughts}</script>
<script>
{resource("report/page.js").read_text()}</script>
</body>
</html>
"""


def _warnings(evaluation: ReportedEvaluation) -> str:
    found = []
    errors = sum(bool(result.error) for result in evaluation.results)
    if not evaluation.complete:
        found.append("This evaluation has not come to its end; these are the episodes so far.")
    if errors:
        found.append(
            f"{errors} episodes could not be run to their end. They count neither as solved nor as failed."
        )
    if STAND_IN in evaluation.head["assets"]:
        found.append("Made with stand-in assets: the figures are not comparable with published ones.")
    return "\n".join(f'<p class="warning">{escape(sentence)}</p>' for sentence in found)


def _ran(results: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    return [result for result in results if not result.error]


def _rate(results: Sequence[EpisodeResult]) -> str:
    ran = _ran(results)
    solved = sum(result.success for result in ran)
    share = f"{solved / len(ran):.1%}".replace(".0%", "%") if ran else "–"
    return f"""<div>
<div class="rate">{share.replace("%", " %")}</div>
<p>{solved} of {len(ran)} episodes solved</p>
<p>{_bar(solved, len(ran))}</p>
<p class="faint">95 % interval {_interval(solved, len(ran))}</p>
</div>"""


def _interval(solved: int, episodes: int) -> str:
    low, high = wilson(solved, episodes)
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def _bar(solved: int, episodes: int) -> str:
    """The rate as a stroke, its interval as a band around it, from 0 to 100 %."""
    if not episodes:
        return ""
    low, high = wilson(solved, episodes)
    band = f"left:{100 * low:.1f}%;right:{100 - 100 * high:.1f}%"
    return (
        f'<span class="ci" title="{_interval(solved, episodes)}"><i style="{band}"></i>'
        f'<b style="left:{100 * solved / episodes:.1f}%"></b></span>'
    )


def _facts(evaluation: ReportedEvaluation, command: str) -> str:
    head, options = evaluation.head, evaluation.options
    assets = escape(head["assets"])
    if STAND_IN in head["assets"]:
        assets += ' <span class="badge">stand-in</span>'
    facts = {
        "Policy": escape(head["policy"]),
        "Fingerprint": f"<code>{escape(head['fingerprint'])}</code>" if head["fingerprint"] else "a script",
        "Suite": escape(head["suite"]),
        "Assets": assets,
    }
    if options.delay is not None:
        late = "as measured" if options.delay == "measured" else f"{1000 * options.delay:g} ms"
        seam = f", seam {options.chunk_seam}" if options.chunk_mode != "open_loop" else ""
        facts["Delay"] = escape(f"{late}, chunks executed {options.chunk_mode}{seam}")
    if options.variation:
        facts["Variation"] = escape(options.variation)
    if options.max_steps is not None:
        facts["Limit"] = f"{options.max_steps} steps"
    facts |= {
        "Machine": escape(head.get("machine", "not on record")),
        "Command": f"<code>{escape(command)}</code>",
    }
    return (
        '<dl class="facts">'
        + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items())
        + "</dl>"
    )


def _tasks(results: Sequence[EpisodeResult]) -> str:
    ran = _ran(results)
    endings = [ending for ending in OUTCOMES[1:] if any(result.outcome == ending for result in ran)]
    names = dict.fromkeys(result.task_name for result in ran)
    groups = [("", name, [result for result in ran if result.task_name == name]) for name in names]
    rows = [_task(*group, endings) for group in [*groups, ("all", "all", ran)] if group[2]]
    columns = "".join(f'<th class="n">{escape(ending)}</th>' for ending in endings)
    return (
        '<table><thead><tr><th>task</th><th class="n">solved</th><th>rate, 95 % interval</th><th></th>'
        f'<th class="n">steps, mean of solved</th>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _task(name: str, words: str, group: Sequence[EpisodeResult], endings: Sequence[str]) -> str:
    solved = [result for result in group if result.success]
    steps = f"{sum(result.steps for result in solved) / len(solved):.0f}" if solved else "–"
    counts = "".join(f'<td class="n">{sum(r.outcome == ending for r in group)}</td>' for ending in endings)
    return (
        f'<tr class="{name}"><td>{escape(_words(words))}</td><td class="n">{len(solved)} of {len(group)}</td>'
        f"<td>{_bar(len(solved), len(group))}</td><td>{_interval(len(solved), len(group))}</td>"
        f'<td class="n">{steps}</td>{counts}</tr>'
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _filters(results: Sequence[EpisodeResult], replays: Mapping[str, str]) -> str:
    kinds = Counter(_kind(result) for result in results)
    shown = {"all": "all", "failed": "failed", "solved": "solved", "error": "not run to the end"}
    buttons = [(kind, words) for kind, words in shown.items() if kind == "all" or kinds[kind]]
    buttons += [("film", "with a video")] if replays else []
    names = {result.task: result.task_name for result in results}
    choices = "".join(
        f'<option value="{task}">{escape(_words(name))}</option>' for task, name in names.items()
    )
    pressed = {True: "true", False: "false"}
    return (
        '<div class="filters">'
        + "".join(
            f'<button data-kind="{kind}" aria-pressed="{pressed[kind == "all"]}">{words}</button>'
            for kind, words in buttons
        )
        + f'<select aria-label="task"><option value="">every task</option>{choices}</select>'
        + '<span class="faint" id="left"></span></div>'
    )


def _kind(result: EpisodeResult) -> str:
    if result.error:
        return "error"
    return "solved" if result.success else "failed"


def _episodes(results: Sequence[EpisodeResult], replays: Mapping[str, str], others: Collection[str]) -> str:
    rows = "".join(_episode(result, replays, others) for result in results)
    return (
        '<table><thead><tr><th>task</th><th class="n">seed</th><th>outcome</th><th class="n">steps</th>'
        '<th class="n">decisions</th><th class="n">decision, median</th><th></th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _episode(result: EpisodeResult, replays: Mapping[str, str], others: Collection[str]) -> str:
    key, kind = f"task{result.task}_seed{result.seed}", _kind(result)
    data = {
        "key": key,
        "task": str(result.task),
        "kind": kind,
        "error": result.error,
        "film": replays.get(key, ""),
    }
    if key in others:
        data["other"] = (
            "This video does not show the evaluated episode in every bit: the world went other ways when the "
            "actions were executed again (another machine, other assets, or another version)."
        )
    attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items() if value)
    words = {"error": "not run to the end", "solved": "solved"}.get(kind, result.outcome or "not solved")
    colour = "good" if result.success else "bad"
    latency = "–" if result.error else f"{result.latency_p50_ms:.0f} ms"
    replay = '<span class="faint">video</span>' if key in replays else ""
    return (
        f'<tr class="row" id="{key}" tabindex="0" role="button" aria-expanded="false"{attributes}>'
        f'<td>{escape(_words(result.task_name))}</td><td class="n">{result.seed}</td>'
        f'<td class="{colour}">{escape(words)}</td><td class="n">{result.steps}</td>'
        f'<td class="n">{result.decisions}</td><td class="n">{latency}</td><td>{replay}</td></tr>'
    )
