"""The `dtvla` command. Exit status: 0 well, 1 failed, 2 misused, 70 a fault of its own, 130 interrupted."""

from __future__ import annotations

import sys
import traceback

from rich.console import Console
from rich.text import Text
from tyro.extras import SubcommandApp

from dtvla import __version__
from dtvla.cli.assets import assets_app
from dtvla.cli.bag import bags
from dtvla.cli.bundle import bundles
from dtvla.cli.common import FAILED, INTERNAL, INTERRUPTED, OK, console
from dtvla.cli.evaluate import evaluate
from dtvla.cli.gate import gate
from dtvla.cli.graph import demo, doctor, up
from dtvla.cli.results import compare, report
from dtvla.cli.security import security_app
from dtvla.cli.sweeps import delay_sweep
from dtvla.errors import DtvlaError, InputError, plain

DEBUG, VERSION = "--debug", "--version"
DESCRIPTION = f"""A DeepThinkVLA policy on ROS 2: it sees, thinks aloud and moves the arm.

{DEBUG} before or behind any command shows the traceback of what went wrong. {VERSION} prints the version."""

app = SubcommandApp()
app.command(bundles, name="bundle", help="Policy bundles: verify, sign.")
app.command(bags, name="bag", help="Recordings: repair one that was never closed.")
app.command(security_app, name="security", help="SROS2: write what every node may say and hear.")
app.command(assets_app, name="assets", help="LIBERO's assets: get them, check them, find them.")
app.command(up)
app.command(demo)
app.command(name="eval")(evaluate)
app.command(gate)
app.command(name="delay-sweep")(delay_sweep)
app.command(compare)
app.command(report)
app.command(doctor)


@app.command
def bench() -> int:
    """Moved: `make bench`, or `python -m tools.benchmarks` in a checkout of the repository."""
    raise InputError(
        "dtvla bench measures what the documents say, and does not travel to a robot any more. In a checkout "
        "of the repository: make bench, or .venv/bin/python -m tools.benchmarks --help."
    )


def main() -> int:
    """Runs the command line. What went wrong is told by `explain`; with --debug its traceback comes first."""
    from dtvla.bringup.launcher import Interrupted

    debug = DEBUG in sys.argv[1:]
    arguments = [word for word in sys.argv[1:] if word != DEBUG]
    if arguments == [VERSION]:
        print(f"dtvla {__version__}")
        return OK
    try:
        return int(app.cli(prog="dtvla", description=DESCRIPTION, args=arguments))
    except (Interrupted, KeyboardInterrupt):
        console.print("\nInterrupted; every process has ended.")
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return explain(error)


def explain(error: Exception) -> int:
    """Says on stderr what went wrong, as a sentence without markup or escapes; returns the exit status.

    What the user can mend (`DtvlaError`, a file that cannot be read or written) is told as it is. Anything
    else is a fault of ours and is told as one, so that nobody looks for it in what was asked.
    """
    if isinstance(error, (DtvlaError, OSError)):
        head, words, status = "Error:", plain(error), FAILED
    else:
        head, status = "A fault of dtvla itself", INTERNAL
        words = (
            f"({type(error).__name__}: {plain(error)}), not of what you asked for. Please report it with the "
            f"traceback, which the same command shows with {DEBUG}."
        )
    Console(stderr=True).print(
        Text.assemble((head, "bold red"), f" {words}"), highlight=False, soft_wrap=True
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
