"""What can go wrong, as sentences a person can act on. Everything else that is raised is a fault of ours."""

LONGEST = 2000


class DtvlaError(Exception):
    """Something that the user can mend; the message says what was wrong, where, and what to do."""


class InputError(DtvlaError, ValueError):
    """An option, a parameter, a name or a file from outside that cannot be used as it is."""


class BundleError(InputError):
    """A policy bundle that must not be run; the message names the file and the field."""


class PolicyInputError(InputError):
    """An image or instruction that a policy must not decide on."""


class DecisionStopped(Exception):
    """`should_stop` said so while the policy was thinking; nothing was decided."""


class PolicyFault(DtvlaError, RuntimeError):
    """The model's own output is unusable (NaN or infinity)."""


def plain(words: object) -> str:
    """Words from outside as one line to print: what a terminal would act on is shown as its escape.

    What is longer than `LONGEST` characters is cut.
    """
    text = str(words)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:LONGEST])
    return shown if len(text) <= LONGEST else f"{shown}..."
