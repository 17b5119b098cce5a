"""What the fuzz tests share: how long they try, what they try, and what counts as an answer in words."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T")

# `make test` tries the same few every time; DTVLA_FUZZ_EXAMPLES=20000 tries so many new ones.
VARIABLE = "DTVLA_FUZZ_EXAMPLES"
EXAMPLES = int(os.environ.get(VARIABLE, "0"))


def fuzz(usual: int = 100) -> Callable[[T], T]:
    """How often a test is tried: `usual` times, or as often as the environment says."""
    return settings(  # type: ignore[return-value]
        max_examples=EXAMPLES or usual,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def new_folder() -> Iterator[Path]:
    """A folder of one example; pytest's own lists all before it to find a name for the next."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def in_words(call: Callable[[], T], *errors: type[Exception]) -> T | None:
    """The call's result, or None when it refused with one of the project's errors, in a sentence.

    Any other exception goes through and fails the test.
    """
    try:
        return call()
    except errors as error:
        text = str(error)
        if type(error) not in errors:  # a subclass, such as UnicodeError of ValueError, was written by others
            raise
        assert text.strip().endswith("."), f"no sentence: {text!r}"
        assert "Traceback" not in text
        text.encode()  # it is printed: no lone surrogates
        assert not any(c in text for c in "\x1b\0\x07\x9b"), f"writes to the terminal: {text!r}"
        return None


scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from([1e-320, 1e308, -1e308, 0.1]),
    st.text(max_size=20),
    st.sampled_from(["", "..", "/", "\x1b[2J", "\ud800", "\0", "NaN", "0" * 64, "f" * 64]),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn, original: Any) -> Any:
    """A JSON value with one to three places changed: another value, a missing one, one more, two swapped."""
    data = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        data = _mutate(draw, data)
    return data


def _mutate(draw: st.DrawFn, data: Any) -> Any:
    if not isinstance(data, (dict, list)) or not data or draw(st.integers(0, 9)) == 0:
        return draw(values)
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    key = draw(st.sampled_from(keys))
    action = draw(st.sampled_from(["go in", "go in", "go in", "change", "remove", "add", "swap"]))
    if action in ("go in", "change"):
        data[key] = _mutate(draw, data[key]) if action == "go in" else draw(values)
    elif action == "remove":
        del data[key]
    elif action == "swap":
        other = draw(st.sampled_from(keys))
        data[key], data[other] = data[other], data[key]
    elif isinstance(data, dict):
        data[draw(st.text(max_size=8))] = draw(values)
    else:
        data.insert(draw(st.integers(0, len(data))), draw(values))
    return data


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """Bytes with one to four damages: changed, cut out, doubled, overwritten by others, or cut off."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        span = draw(st.integers(1, 64))
        action = draw(st.sampled_from(["flip", "cut", "double", "overwrite", "cut off"]))
        if action == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del content[at : at + span]
        elif action == "double":
            content[at:at] = content[at : at + span]
        elif action == "overwrite":
            content[at : at + span] = draw(st.binary(max_size=span))
        else:
            del content[at:]
    return bytes(content)
