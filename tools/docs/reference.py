"""The pages of the site that are made from the code, so that they cannot disagree with it."""

from __future__ import annotations

from functools import cache

from tools.docs import reference_commands, reference_python, reference_ros
from tools.docs.command_checks import report


@cache
def pages() -> dict[str, str]:
    """Every generated page as Markdown, by its path below docs/."""
    return {
        "reference/commands.md": reference_commands.runtime_commands(),
        "reference/checkout_commands.md": reference_commands.workshop_commands(),
        "reference/messages.md": reference_ros.messages(),
        "reference/nodes.md": reference_ros.nodes(),
        "reference/bundle.md": reference_python.bundle(),
        "reference/python.md": reference_python.api(),
        "reference/checked_commands.md": report(),
    }
