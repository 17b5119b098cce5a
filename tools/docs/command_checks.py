"""What is done about each command of the pages: run as written, run by a test in small, or not run.

Every command is besides held to its program's own command line (`tools.docs.command_parsers`): a wrong
option or value on a page fails the tests, also where the command is not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.docs.command_parsers import UnusableCommand, check, check_names
from tools.docs.markdown import page, table
from tools.docs.page_commands import PageCommand
from tools.docs.reference_commands import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
BY_ARGS = {  # targets of make that hand ARGS to a program
    "demo": ("dtvla.cli", "demo"),
    "gate": ("dtvla.cli", "gate", "--record", "docs/results/embedded.json"),
    "faults": ("tests.faults",),
    "soak": ("tests.faults.soak",),
    "bench": ("tools.benchmarks",),
    "gpu-check": ("model_export.gpu_check",),
}
LAUNCH_OPTIONS = frozenset({"namespace", "cameras", "robot", "use_sim_time", "clock", "rviz"})


@dataclass(frozen=True)
class Handling:
    """What is done about commands that begin in the same way.

    Attributes:
        begins: the command's first words.
        how: `run` as written by tests/unit/test_docs_commands.py; `test`: by another test, in small or with
            a stand-in; `not run`: by none.
        why: the test's file, or the reason.
    """

    begins: str
    how: Literal["run", "test", "not run"]
    why: str


MINUTES = "minutes of simulation"
HOURS = "hours of recording and training"
MEASURES = "a measurement, wanted on an idle machine"
NEEDS_ROS = "needs a ROS installation; tried by hand on 2026-11-25 (see On a robot with ROS 2)"
NEEDS_DOCKER = "needs a Docker engine, and none was at hand"
NEEDS_GPU = "needs an NVIDIA GPU, and none was at hand"
OWN_DATA = "needs data or results of your own"
TAKES_ALL = "it is what runs the tests"

# The longest beginning that fits counts.
HANDLINGS = (
    Handling("dtvla --help", "run", ""),
    Handling("dtvla bundle", "run", ""),
    Handling("dtvla security generate", "run", ""),
    Handling("dtvla up", "test", "tests/ros/test_launcher.py"),
    Handling("dtvla up --robot", "test", "tests/ros/test_arm_graph.py"),
    Handling("dtvla demo", "test", "tests/ros/test_shipped_policy.py"),
    Handling("dtvla eval", "not run", f"{MINUTES}; tests/unit/test_evaluation_worker_pool.py runs a few"),
    Handling("dtvla eval --ros", "not run", f"{MINUTES}; tests/ros/test_ros_evaluation.py runs a few"),
    Handling("dtvla gate", "test", "tests/unit/test_evaluation_gate.py"),
    Handling("dtvla delay-sweep", "not run", f"{MINUTES}; tests/unit/test_evaluation_delay.py runs a few"),
    Handling("dtvla compare", "test", "tests/unit/test_evaluation_compare.py"),
    Handling("dtvla report", "test", "tests/unit/test_evaluation_report.py"),
    Handling("dtvla doctor", "not run", "it judges the machine it runs on, not this code"),
    Handling("dtvla assets", "not run", "it fetches LIBERO's assets from the network"),
    Handling("dtvla bag repair", "test", "tests/unit/test_recorder_bag_repair.py"),
    Handling("dtvla bench", "not run", "moved: it says where to"),
    Handling("python say.py", "not run", "needs a running graph; tried by hand on 2026-11-29"),
    Handling("python -m training.recipe", "not run", f"{HOURS}; its parts are tested"),
    Handling("python -m training.collect", "test", "tests/unit/test_collect.py"),
    Handling("python -m training.datasets", "test", "tests/training/test_datasets_round_trip.py"),
    Handling("python -m training.datasets check", "test", "tests/training/test_datasets_bad_input.py"),
    Handling("python -m training.sft", "test", "tests/unit/test_sft.py"),
    Handling("python -m training.sft.bench", "not run", MEASURES),
    Handling("python -m training.rl", "test", "tests/training/test_rl_loop.py"),
    Handling("python -m training.rl.bench", "test", "tests/training/test_rl_bench.py"),
    Handling("python -m training.ablation", "not run", f"{HOURS}; its parts are tested"),
    Handling("python -m training.release", "not run", "its parts are tested"),
    Handling("python -m training.curves", "not run", OWN_DATA),
    Handling("python -m training.check_golden", "test", "tests/golden/test_golden.py"),
    Handling("python -m model_export", "test", "tests/unit/test_export_checkpoint.py"),
    Handling("python -m model_export.quantise", "test", "tests/unit/test_export_quantise.py"),
    Handling("python -m model_export.typical", "test", "tests/unit/test_export_typical_thoughts.py"),
    Handling("python -m model_export.compare", "not run", OWN_DATA),
    Handling("python -m model_export.engine", "test", "tests/unit/test_export_engine.py"),
    Handling("python -m model_export.gpu_check", "test", "tests/unit/test_export_gpu_check.py"),
    Handling("python -m model_export.plugin.ahead_of_time", "test", "tests/unit/test_export_plugin.py"),
    Handling("python -m model_export.onnx.shared_mask", "test", "tests/unit/test_export_shared_mask.py"),
    Handling("python -m tools.benchmarks", "not run", MEASURES),
    Handling("python -m tools.benchmarks.export", "not run", MEASURES),
    Handling("python -m tools.benchmarks.midsize", "not run", MEASURES),
    Handling("python -m tests.faults", "test", "tests/ros/test_faults.py"),
    Handling("python -m tests.faults.soak", "not run", "it takes minutes to hours by its nature"),
    Handling("python -m pip", "not run", "it fetches packages from the network"),
    Handling("python -m pytest", "not run", TAKES_ALL),
    Handling("python -m mypy", "not run", "run in CI"),
    Handling("make setup", "not run", "it made what runs the tests"),
    Handling("make setup-dev", "not run", "it made what runs the tests"),
    Handling("make test", "not run", TAKES_ALL),
    Handling("make test-all", "not run", "it fetches large extras from the network"),
    Handling("make lint", "not run", "run in CI"),
    Handling("make format", "not run", "it changes the files"),
    Handling("make docs", "test", "tests/unit/test_docs_site.py"),
    Handling("make demo", "test", "tests/ros/test_shipped_policy.py"),
    Handling("make gate", "test", "tests/unit/test_evaluation_gate.py"),
    Handling("make faults", "test", "tests/ros/test_faults.py"),
    Handling("make soak", "not run", "it takes minutes to hours by its nature"),
    Handling("make bench", "not run", MEASURES),
    Handling("make gpu-check", "not run", NEEDS_GPU),
    Handling("make distclean", "not run", "it removes what runs the tests"),
    Handling("torchrun", "test", "tests/unit/test_sft.py"),
    Handling("torchrun -m training.rl", "test", "tests/training/test_rl_sharded.py"),
    Handling("tensorboard", "not run", "a program of others that waits for a browser"),
    Handling("openssl", "test", "tests/unit/test_policy_signing.py"),
    Handling("ros2", "not run", NEEDS_ROS),
    Handling("colcon", "not run", "make setup runs it with the wheels' own paths"),
    Handling("docker", "not run", NEEDS_DOCKER),
    Handling("tools/setup.sh", "test", "tests/unit/test_setup_script.py"),
    Handling("git", "not run", "it fetches from the network, or changes the checkout"),
    Handling("pipx", "not run", "it fetches packages from the network"),
    Handling("pre-commit", "not run", "it changes the checkout"),
    Handling("cd", "not run", "a word of the shell"),
    Handling("export", "not run", "a word of the shell"),
    Handling("source", "not run", "a word of the shell"),
)


def handling_of(command: PageCommand) -> Handling:
    """What is done about a command.

    Raises:
        UnusableCommand: nothing stands in the table for it.
    """
    words = _program_and_arguments(command)
    line = " ".join(words)
    fitting = [each for each in HANDLINGS if _fits(each.begins, line)]
    if not fitting:
        raise UnusableCommand(
            f"{command.page}: nothing says whether a test runs '{command.text}'. Add it to HANDLINGS in "
            "tools/docs/command_checks.py."
        )
    return max(fitting, key=lambda each: len(each.begins))


def _fits(begins: str, line: str) -> bool:
    """Whether a line begins so; a beginning that ends with an option fits wherever the option stands."""
    head, _, option = begins.rpartition(" ")
    if option.startswith("--") and head:
        return f"{line} ".startswith(f"{head} ") and f" {option} " in f"{line} "
    return f"{line} ".startswith(f"{begins} ")


def _program_and_arguments(command: PageCommand) -> tuple[str, ...]:
    """The words of a command; `torchrun OPTIONS -m MODULE` without torchrun's own options."""
    words = command.words
    if words[0] == "torchrun" and "-m" in words:
        return ("torchrun", *words[words.index("-m") :])
    return words


def hold_to_its_program(command: PageCommand) -> None:
    """Checks a command's options and values by the program's own command line; starts nothing.

    Raises:
        UnusableCommand: the program would refuse it.
    """
    try:
        _hold(command)
    except UnusableCommand as error:
        raise UnusableCommand(f"{command.page}: {command.text}\n{error}") from None


def _hold(command: PageCommand) -> None:
    words = command.words
    read = check if command.whole else check_names
    if words[0] == "dtvla":
        read("dtvla.cli", words[1:])
    elif words[0] in ("python", "torchrun") and "-m" in words:
        module = words[words.index("-m") + 1]
        if module in PROGRAMS:
            read(module, words[words.index("-m") + 2 :])
        elif module.split(".")[0] in ("dtvla", "training", "model_export", "tools", "tests"):
            raise UnusableCommand(f"There is no program {module} in tools/docs/reference_commands.py.")
    elif words[0] == "make":
        _hold_make(words[1:])
    elif words[:2] == ("ros2", "launch") and len(words) > 3:
        _hold_launch(words[3:])


def _hold_make(words: tuple[str, ...]) -> None:
    """The target exists, and takes the arguments that ARGS hands to its program."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in words:
        name, is_setting, value = word.partition("=")
        if not is_setting and name not in {*targets, "-h"}:
            raise UnusableCommand(f"The Makefile has no target '{name}'.")
        if is_setting and name not in ("ARGS", "COVERAGE", "MINUTES", "PYTHON"):
            raise UnusableCommand(f"The Makefile reads no variable {name}.")
        if name == "ARGS" and (program := BY_ARGS.get(words[0])) is not None:
            check(program[0], [*program[1:], *value.split()])


def _hold_launch(words: tuple[str, ...]) -> None:
    """The launch file declares what is set."""
    from dataclasses import fields

    from dtvla.bringup.graph import GraphOptions

    known = {field.name for field in fields(GraphOptions)} | LAUNCH_OPTIONS
    for word in words:
        name, is_setting, _ = word.partition(":=")
        if is_setting and name not in known:
            raise UnusableCommand(f"The launch files have no argument '{name}'.")


def report() -> str:
    """The page that says which commands of this site are run."""
    words = {"run": "run as written", "test": "by a test, in small", "not run": "not run"}
    rows = [(f"`{each.begins}`", words[each.how], _reason(each)) for each in _sorted()]
    return page(
        "Which commands are run",
        "A test collects every command of this site. Each is read by its program's own command line, so "
        "that an option or a value that does not exist fails the test. Whether it is run as well is in this "
        "table; the longest beginning that fits counts.",
        table(("command begins with", "is it run", "by which test, or why not"), rows),
    )


def _reason(handling: Handling) -> str:
    if handling.how == "run":
        return "`tests/unit/test_docs_commands.py`"
    return f"`{handling.why}`" if handling.how == "test" else handling.why


def _sorted() -> Iterator[Handling]:
    for how in ("run", "test", "not run"):
        yield from (each for each in HANDLINGS if each.how == how)
