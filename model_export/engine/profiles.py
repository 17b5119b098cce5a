"""The shapes a bundle's engines are built for: plain data, so that it can be checked without TensorRT.

Every pass that the runtime makes must fit a profile, and the frequent ones a narrow profile whose kernels
were timed for them: thinking word by word, the action block, trying a draft. The widest takes the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from dtvla.policy.bundle.engine_files import NONE, Engine, Profile, Span
from dtvla.policy.bundle.policy_spec import PolicySpec
from model_export.errors import ExportError

VERIFY_ROWS = 128  # rows of a pass that tries a draft: above, the attention kernel is another one anyway
_SHORTEST_TEXT = 16  # tokens of the shortest prompt that is worth an engine, images aside
_USUAL_TEXT = 64  # tokens of a usual prompt, images aside

Shape = tuple[int, ...]


def longest_pass(spec: PolicySpec, asked: int | None) -> int:
    """Rows of the longest pass an engine is built for: the cache's length, or fewer when so asked.

    Raises:
        ExportError: so few that no decision fits, or more than the cache holds.
    """
    layout = spec.layout
    tags = len(layout.closing) + len(layout.ending)
    least = _images(spec) + _SHORTEST_TEXT + spec.thought_cap + layout.slots + tags
    if asked is None:
        return spec.cache_length
    if not least <= asked <= spec.cache_length:
        raise ExportError(
            f"--max-rows is {asked}; this policy needs {least} rows for a decision and its cache holds "
            f"{spec.cache_length}. Choose a number between them."
        )
    return asked


def decoder_profiles(spec: PolicySpec, max_rows: int) -> tuple[Profile, ...]:
    """The decoder's profiles, narrow ones first.

    Args:
        spec: of the policy.
        max_rows: rows of the longest pass.
    """
    slots, words = spec.layout.slots, spec.thought_cap
    block = len(spec.layout.action_block())
    closing = len(spec.layout.closing)
    images = _images(spec)
    some = Span(0, min(words, 16), words)
    verify = min(VERIFY_ROWS, max_rows)
    return (
        Profile("think", rows=Span(1, 1, 1), think_rows=Span(1, 1, 1)),
        Profile("act", rows=Span(block, block, block + closing), action_rows=Span(slots, slots, slots)),
        Profile("verify", Span(1, min(32, verify), verify), NONE, some, Span(0, 0, slots)),
        Profile(
            "prefill",
            Span(1, min(images + _USUAL_TEXT, max_rows), max_rows),
            Span(0, images, images),
            Span(0, 1, words),
            Span(0, slots, slots),
        ),
    )


def vision_profiles(spec: PolicySpec) -> tuple[Profile, ...]:
    """The vision graph's one profile: all images of a decision at once."""
    images = spec.layout.images
    return (Profile("images", Span(images, images, images)),)


def fixed_sizes(spec: PolicySpec, graph: str) -> dict[str, int]:
    """Dynamic dimensions of an ONNX graph that have one size in its engine, by name.

    One sequence, all images at once; TensorRT's KVCacheUpdate wants a cache whose length is a constant.
    """
    return {"N": spec.layout.images} if graph == "vision" else {"B": 1, "C": spec.cache_length}


def fix_sizes(proto: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Makes dynamic dimensions of a graph's inputs and outputs constant, in place."""
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]


def decoder_shapes(profile: Profile, hidden_size: int) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Smallest, usual and largest shape of each dynamic input of the decoder under a profile."""
    ids, features, think, act = profile.rows, profile.features, profile.think_rows, profile.action_rows
    return {
        "ids": ((1, ids.low), (1, ids.usual), (1, ids.high)),
        "features": (
            (1, features.low, hidden_size),
            (1, features.usual, hidden_size),
            (1, features.high, hidden_size),
        ),
        "think_rows": ((think.low,), (think.usual,), (think.high,)),
        "act_rows": ((act.low,), (act.usual,), (act.high,)),
    }


def engine_name(graph: str, gpu: str, tensorrt: str) -> str:
    """File name of an engine, such as "decoder.nvidia-h200.trt10.16.1.engine"."""
    return f"{graph}.{'-'.join(gpu.lower().split())}.trt{tensorrt}.engine"


def merged(old: Iterable[Engine], new: Iterable[Engine]) -> tuple[Engine, ...]:
    """A bundle's engines after new ones were built: those for other machines stay."""
    new = tuple(new)
    replaced = {engine.runs_on() for engine in new}
    return (*(engine for engine in old if engine.runs_on() not in replaced), *new)


def _images(spec: PolicySpec) -> int:
    """Image features of one decision."""
    return spec.layout.images * spec.layout.image_tokens
