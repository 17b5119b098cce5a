"""What counts as an instruction. No ROS."""

from __future__ import annotations

import unicodedata

from dtvla.nodes.common.parameters import Refusal


def checked(text: str, longest: int) -> str:
    """The instruction without surrounding blanks.

    Raises:
        Refusal: empty, longer than `longest` characters, or with control characters.
    """
    words = text.strip()
    if not words:
        raise Refusal("The instruction is empty. Say what to do, for example: Pick up the can.")
    if len(words) > longest:
        raise Refusal(
            f"The instruction has {len(words)} characters; at most {longest} are read "
            "(parameter max_instruction_characters). Say it shorter."
        )
    bad = next((c for c in words if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn")), None)
    if bad is not None:
        raise Refusal(f"The instruction contains the control character U+{ord(bad):04X}. Send plain text.")
    return words
