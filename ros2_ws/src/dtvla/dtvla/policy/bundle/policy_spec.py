"""What a policy is beside its weights: the content of policy.json as frozen dataclasses.

Types and ranges of the fields stand in their annotations (`dtvla.structured`); a wrong one is a `BundleError`
that names it by its path in the file, such as `norm_stats.action.q99`. What depends on several fields, such
as ids below the vocabulary's size, is compared by hand in `PolicySpec.from_json`: no annotation can say it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from dtvla.errors import BundleError
from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.images import ROTATIONS, Camera, ImageSpec
from dtvla.policy.prompt import THINKING_PREFIX
from dtvla.policy.token_layout import SPECIAL_TOKENS, TokenLayout
from dtvla.structured import Count, FieldError, Finite, Positive, one_of, read, within

SCHEMA_VERSION = 1
FAMILY = "deepthinkvla"
FILE = "policy.json"
SIGNATURE = "policy.json.sig"  # beside it, when the bundle is signed (`dtvla.policy.bundle.signing`)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
# No policy has more, but a damaged file may say so, and these sizes become memory before all else is seen.
MOST = {
    "vocab_size": 1 << 24,
    "cache_length": 1 << 20,
    "horizon": 1000,  # as `control.limits.MAX_HORIZON`
    "typical_thoughts": 64,
    "thought_characters": 4000,
}
ACTION_DIM = 7  # translation, rotation, gripper: what the controller and LIBERO execute
OLDER = {"precision": "fp32", "typical_thoughts": [], "engines": []}  # fields that older files lack


@dataclass(frozen=True)
class ActionScale:
    """What a raw action of 1.0 means per control period.

    Attributes:
        position_m: translation along each axis (m).
        rotation_rad: rotation about each axis (rad).
    """

    position_m: Positive = 0.05
    rotation_rad: Positive = 0.5


@dataclass(frozen=True)
class Gripper:
    """The gripper's full opening and the raw values that close and open it.

    Attributes:
        opening_m: between the fingers, when it is open (m).
        closed_value: the raw action that closes it.
        open_value: the raw action that opens it.
    """

    opening_m: Positive = 0.08
    closed_value: Finite = 1.0
    open_value: Finite = -1.0


@dataclass(frozen=True)
class PolicySpec:
    """Everything a runtime must know to feed the graphs and to read their answer.

    Attributes:
        layout: token ids and sizes.
        image: how a picture becomes the policy's input.
        cameras: the policy's pictures, in its order.
        normaliser: from the policy's actions in [-1, 1] back to raw ones.
        control_period_s: time between two rows of a chunk (s).
        decode_shift: 0 decodes an action bin as the reference does, 1 without its bias.
        prompt_prefix: text in front of every instruction, which asks for a thought.
        action_scale: from raw actions to metres and radians.
        gripper: from raw actions to an opening.
        provenance: where the policy comes from, for people; nothing reads it.
    """

    layout: TokenLayout
    image: ImageSpec
    cameras: tuple[Camera, ...]
    normaliser: Normaliser
    control_period_s: float = 0.05
    execute_steps: int = 10  # rows of a chunk to execute before the next decision
    thought_cap: int = 128  # tokens, the three tags included
    cache_length: int = 1024  # key/value rows to allocate
    decode_shift: int = 0
    precision: str = "fp32"  # of the graphs' weights, one of `PRECISIONS`
    prompt_prefix: str = THINKING_PREFIX
    typical_thoughts: tuple[str, ...] = ()  # words of what it often thinks: first drafts
    action_scale: ActionScale = field(default_factory=ActionScale)
    gripper: Gripper = field(default_factory=Gripper)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def codec(self) -> ActionTokenizer:
        """The action codec of this policy."""
        return ActionTokenizer(self.layout.bins, self.layout.action_begin, self.decode_shift)

    def metric(self, raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Raw actions [h, 7] as translations [h, 3] m, rotations [h, 3] rad and gripper openings [h] m."""
        gripper, scale = self.gripper, self.action_scale
        closing = (raw[:, 6] - gripper.open_value) / (gripper.closed_value - gripper.open_value)
        opening = gripper.opening_m * (1.0 - np.clip(closing, 0.0, 1.0))
        return raw[:, :3] * scale.position_m, raw[:, 3:6] * scale.rotation_rad, opening

    def to_json(self) -> dict[str, Any]:
        """The content of policy.json without `files`, `engines` and `sha256`."""
        layout = dataclasses.asdict(self.layout)
        layout["prompt_end"] = list(self.layout.prompt_end)
        return {
            "schema_version": SCHEMA_VERSION,
            "family": FAMILY,
            "layout": layout,
            "image": dataclasses.asdict(self.image),
            "cameras": [dataclasses.asdict(camera) for camera in self.cameras],
            "norm_stats": {"action": self.normaliser.to_stats()},
            "control_period_s": self.control_period_s,
            "execute_steps": self.execute_steps,
            "thought_cap": self.thought_cap,
            "cache_length": self.cache_length,
            "decode_shift": self.decode_shift,
            "precision": self.precision,
            "prompt_prefix": self.prompt_prefix,
            **({"typical_thoughts": list(self.typical_thoughts)} if self.typical_thoughts else {}),
            "action_scale": dataclasses.asdict(self.action_scale),
            "gripper": dataclasses.asdict(self.gripper),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: object) -> PolicySpec:
        """Reads and checks the content of policy.json (`files`, `engines` and `sha256` apart).

        Raises:
            BundleError: any field is missing, unknown, of the wrong type or out of range.
        """
        if not isinstance(data, dict):
            raise BundleError(f"{FILE}: the file must be a JSON object.")
        _check_version(data)
        try:
            manifest = read(_Manifest, {**OLDER, **data}, complete=True)
            _check_layout(manifest.layout)
            within("execute_steps", manifest.execute_steps, 1, manifest.layout.horizon)
        except FieldError as error:
            raise BundleError(f"{FILE}: {error}") from None
        _check_cameras(manifest.cameras, manifest.layout)
        _check_thoughts(manifest.typical_thoughts)
        _check_cache(manifest)
        gripper = manifest.gripper
        if gripper.closed_value == gripper.open_value:
            raise BundleError(f"{FILE}: gripper closes and opens with the same value {gripper.open_value:g}.")
        names = vars(manifest).keys() & cls.__dataclass_fields__.keys()
        return cls(
            **{name: getattr(manifest, name) for name in names},
            normaliser=_read_normaliser(manifest.norm_stats.action, manifest.layout.action_dim),
        )


@dataclass(frozen=True)
class _NormStats:
    """The statistics of policy.json; `Normaliser.from_stats` checks their arrays."""

    action: dict[str, Any]


@dataclass(frozen=True)
class _Manifest:
    """policy.json as it stands in a bundle, every field required; see `PolicySpec` for what they mean.

    `files`, `engines` and `sha256` are read where they are used (`bundle.loading`, `bundle.engine_files`).
    """

    schema_version: Any
    family: Any
    layout: TokenLayout
    image: ImageSpec
    cameras: Annotated[tuple[Camera, ...], Meta(min_length=1)]
    norm_stats: _NormStats
    control_period_s: Annotated[float, Meta(gt=0.0, le=10.0)]
    execute_steps: Count
    thought_cap: Annotated[int, Meta(ge=4)]
    cache_length: Annotated[int, Meta(ge=1, le=MOST["cache_length"])]
    decode_shift: Annotated[int, Meta(ge=0, le=1)]
    precision: Annotated[str, one_of(*PRECISIONS)]
    prompt_prefix: str
    typical_thoughts: tuple[str, ...]
    action_scale: ActionScale
    gripper: Gripper
    provenance: dict[str, Any]
    files: Any
    engines: Any
    sha256: Any


def _check_version(data: Mapping[str, Any]) -> None:
    """What must be known before anything else of a file is read."""
    for name in ("schema_version", "family"):
        if name not in data:
            raise BundleError(f"{FILE}: the field {name} is missing.")
    version, family = data["schema_version"], data["family"]
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{FILE}: schema_version is {version!r}, this runtime reads {SCHEMA_VERSION}. "
            "Export the policy again with this version of the code."
        )
    if family != FAMILY:
        raise BundleError(f"{FILE}: family is {family!r}, this runtime runs {FAMILY!r} policies.")


def _check_layout(layout: TokenLayout) -> None:
    """Raises FieldError for an id outside the vocabulary or a size out of its range."""
    within("layout.vocab_size", layout.vocab_size, 16, MOST["vocab_size"])
    last = layout.vocab_size - 1
    for name in (*SPECIAL_TOKENS, "action_begin"):
        within(f"layout.{name}", getattr(layout, name), 0, last)
    for index, token in enumerate(layout.prompt_end):
        within(f"layout.prompt_end[{index}]", token, 0, last)
    within("layout.bins", layout.bins, 3, layout.vocab_size - layout.action_begin)
    within("layout.image_tokens", layout.image_tokens, 1)
    within("layout.images", layout.images, 1)
    within("layout.horizon", layout.horizon, 1, MOST["horizon"])
    within("layout.action_dim", layout.action_dim, ACTION_DIM, ACTION_DIM)
    if len(set(layout.special_ids().values())) != len(SPECIAL_TOKENS):
        raise BundleError(f"{FILE}: two tokens of layout share one id; every tag needs its own.")


def _check_cameras(cameras: tuple[Camera, ...], layout: TokenLayout) -> None:
    for index, camera in enumerate(cameras):
        if camera.rotation_deg not in ROTATIONS:
            raise BundleError(f"{FILE}: cameras[{index}].rotation_deg must be one of {ROTATIONS}.")
    if len({camera.name for camera in cameras}) != len(cameras):
        raise BundleError(f"{FILE}: two cameras have the same name.")
    if len(cameras) != layout.images:
        raise BundleError(
            f"{FILE}: cameras lists {len(cameras)} cameras, layout.images says {layout.images}."
        )


def _check_thoughts(thoughts: tuple[str, ...]) -> None:
    if len(thoughts) > MOST["typical_thoughts"] or any(
        len(words) > MOST["thought_characters"] for words in thoughts
    ):
        raise BundleError(
            f"{FILE}: typical_thoughts holds more than {MOST['typical_thoughts']} thoughts, or one of more "
            f"than {MOST['thought_characters']} characters. Export the policy again."
        )


def _check_cache(manifest: _Manifest) -> None:
    layout = manifest.layout
    pictures, block = layout.images * layout.image_tokens, layout.slots + 3
    if manifest.cache_length <= pictures + manifest.thought_cap + block:
        raise BundleError(
            f"{FILE}: cache_length is {manifest.cache_length}, but the pictures take {pictures} positions, "
            f"the longest thought {manifest.thought_cap} and the action block {block}. "
            "Export the policy again with a longer cache or a smaller thought_cap."
        )


def _read_normaliser(stats: dict[str, Any], action_dim: int) -> Normaliser:
    try:
        return Normaliser.from_stats(stats, action_dim, where="norm_stats.action")
    except ValueError as error:
        raise BundleError(f"{FILE}: {error}") from None
