"""Reference page of every command, from the programs' own command lines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping

from tools.docs.command_parsers import options, subcommands, usual_parser
from tools.docs.markdown import escaped, page, table

# Programs by the page that they stand on, in the order of their use.
RUNTIME = {"dtvla.cli": "dtvla"}
WORKSHOP = {
    module: f"python -m {module}"
    for module in (
        "training.recipe",
        "training.collect",
        "training.datasets",
        "training.sft",
        "training.rl",
        "training.release",
        "training.ablation",
        "training.curves",
        "training.check_golden",
        "training.sft.bench",
        "training.rl.bench",
        "model_export",
        "model_export.quantise",
        "model_export.typical",
        "model_export.compare",
        "model_export.engine",
        "model_export.onnx.shared_mask",
        "model_export.plugin.ahead_of_time",
        "model_export.gpu_check",
        "tools.benchmarks",
        "tools.benchmarks.export",
        "tools.benchmarks.midsize",
        "tests.faults",
        "tests.faults.soak",
    )
}
PROGRAMS: Mapping[str, str] = RUNTIME | WORKSHOP


def runtime_commands() -> str:
    """`dtvla` and all that it can do."""
    return page(
        "The dtvla command",
        "Made from the command's own parser; `dtvla COMMAND --help` says the same in a terminal. "
        "Exit status: 0 well, 1 failed, 2 misused, 130 interrupted. An error of use is one sentence that "
        "says what to do.",
        *sections(RUNTIME),
    )


def workshop_commands() -> str:
    """Training, export, measurement: programs of a checkout."""
    return page(
        "Commands of a checkout",
        "Training, export and measurements do not travel to a robot. In a checkout of the repository, after "
        "`make setup-dev`, they are started with `.venv/bin/python -m ...`. Made from the programs' own "
        "parsers.",
        *sections(WORKSHOP),
    )


def sections(programs: Mapping[str, str]) -> Iterator[str]:
    """The sections of several programs."""
    for module, words in programs.items():
        yield from _program(words, usual_parser(module))


def _program(words: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    inner = subcommands(parser)
    if words != "dtvla":
        yield f"## {words}"
        if parser.description:
            yield _prose(parser.description)
    if rows := [_option(action) for action in options(parser)]:
        yield table(("option", "default", "what it does"), rows)
    for name, each in inner.items():
        yield from _program(f"{words} {name}", each)


def _prose(words: str) -> str:
    """A program's description: paragraphs, and what stands indented in it as it is."""
    blocks = re.split(r"\n\s*\n", words.strip())
    shown = []
    for block in blocks:
        lines = block.splitlines()
        if lines[0].startswith("    ") or (len(lines) > 1 and all(line.startswith("    ") for line in lines)):
            shown.append("```text\n" + "\n".join(line.strip() for line in lines) + "\n```")
        else:
            shown.append(escaped(" ".join(block.split())))
    return "\n\n".join(shown)


def _option(action: argparse.Action) -> tuple[str, str, str]:
    """(name and value, default, meaning) of an option or a positional argument."""
    metavar = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar
    value = (metavar or "").replace("{None}|", "")
    names = [name for name in action.option_strings if not name.startswith("--no-")] or action.option_strings
    shown = ", ".join(f"`{name}`" for name in names) or f"`{value}`"
    if names and value:
        shown += " " + (_choices(value) if value.startswith("{") else f"`{value}`")
    said = (action.help or "") % {} if "%%" in (action.help or "") else action.help or ""
    found = re.fullmatch(r"(.*?)\s*\((required|default: (.*?)|[^()]*repeatable[^()]*)\)", said, re.DOTALL)
    if found is None:
        return shown, "", escaped(said)
    default = "required" if found[2] == "required" else found[3] or ""
    empty = default in ("None", "", "''") and default != "required"
    shown_default = "" if empty else default if default == "required" else f"`{default}`"
    return shown, shown_default, escaped(found[1])


def _choices(value: str) -> str:
    return "one of " + ", ".join(f"`{choice}`" for choice in value.strip("{}").split(","))
