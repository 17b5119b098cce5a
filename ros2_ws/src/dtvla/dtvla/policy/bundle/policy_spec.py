"""What a policy is beside its weights: the content of policy.json as frozen dataclasses.

Every field is read with its type and range; a wrong one is a `BundleError` that names it by its path
in the file, such as `norm_stats.action.q99`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import BundleError, plain
from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.images import ROTATIONS, Camera, ImageSpec
from dtvla.policy.prompt import THINKING_PREFIX
from dtvla.policy.token_layout import TokenLayout

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
    "image_size": 4096,
    "typical_thoughts": 64,
    "thought_characters": 4000,
}
LARGEST = 1e30  # of any number; far from where float64 ends, so that what is computed with it stays finite
ACTION_DIM = 7  # translation, rotation, gripper: what the controller and LIBERO execute
TAGS = ("image", "think", "end_think", "action", "end_action", "pad", "eos", "bos")


@dataclass(frozen=True)
class ActionScale:
    """What a raw action of 1.0 means per control period.

    Attributes:
        position_m: translation along each axis (m).
        rotation_rad: rotation about each axis (rad).
    """

    position_m: float = 0.05
    rotation_rad: float = 0.5


@dataclass(frozen=True)
class Gripper:
    """The gripper's full opening and the raw values that close and open it.

    Attributes:
        opening_m: between the fingers, when it is open (m).
        closed_value: the raw action that closes it.
        open_value: the raw action that opens it.
    """

    opening_m: float = 0.08
    closed_value: float = 1.0
    open_value: float = -1.0


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
        top = Fields(data, "")
        version = top.take("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{FILE}: schema_version is {version!r}, this runtime reads {SCHEMA_VERSION}. "
                "Export the policy again with this version of the code."
            )
        family = top.take("family")
        if family != FAMILY:
            raise BundleError(f"{FILE}: family is {family!r}, this runtime runs {FAMILY!r} policies.")
        layout = _read_layout(top.section("layout"))
        spec = cls(
            layout=layout,
            image=_read_image(top.section("image")),
            cameras=_read_cameras(top),
            normaliser=_read_normaliser(top.section("norm_stats"), layout.action_dim),
            control_period_s=top.number("control_period_s", above=0.0, most=10.0),
            execute_steps=top.integer("execute_steps", 1, layout.horizon),
            thought_cap=top.integer("thought_cap", 4),
            cache_length=top.integer("cache_length", layout.slots + 3, MOST["cache_length"]),
            decode_shift=top.integer("decode_shift", 0, 1),
            precision=_read_precision(top),
            prompt_prefix=top.text("prompt_prefix"),
            typical_thoughts=_read_typical(top),
            action_scale=_read_scale(top.section("action_scale")),
            gripper=_read_gripper(top.section("gripper")),
            provenance=top.section("provenance").rest(),
        )
        top.take("files")
        top.take_or("engines", [])  # they belong to the files (`dtvla.policy.bundle.engine_files`)
        top.take("sha256")
        top.finish()
        pictures = layout.images * layout.image_tokens
        if spec.cache_length <= pictures + spec.thought_cap + len(layout.action_block()):
            raise BundleError(
                f"{FILE}: cache_length is {spec.cache_length}, but the pictures take {pictures} positions, "
                f"the longest thought {spec.thought_cap} and the action block {len(layout.action_block())}. "
                "Export the policy again with a longer cache or a smaller thought_cap."
            )
        if len(spec.cameras) != layout.images:
            raise BundleError(
                f"{FILE}: cameras lists {len(spec.cameras)} cameras, layout.images says {layout.images}."
            )
        return spec


class Fields:
    """One JSON object, read field by field; what is left unread at the end is an error."""

    def __init__(self, data: object, path: str) -> None:
        self.path = path
        if not isinstance(data, dict):
            raise BundleError(f"{FILE}: {path or 'the file'} must be a JSON object.")
        self._left: dict[str, Any] = dict(data)

    def name(self, key: str) -> str:
        """Path of a field in the file."""
        return f"{self.path}.{plain(key)}" if self.path else plain(key)

    def take(self, key: str) -> Any:
        """The raw value of a field."""
        if key not in self._left:
            raise BundleError(f"{FILE}: the field {self.name(key)} is missing.")
        return self._left.pop(key)

    def take_or(self, key: str, default: Any) -> Any:
        """The raw value of a field that older files lack."""
        return self._left.pop(key, default)

    def section(self, key: str) -> Fields:
        """A nested object."""
        return Fields(self.take(key), self.name(key))

    def integer(self, key: str, low: int, high: int | None = None) -> int:
        """An integer in [low, high]."""
        value = self.take(key)
        if type(value) is not int or value < low or (high is not None and value > high):
            limit = f"{low} or more" if high is None else f"{low} to {high}"
            raise BundleError(f"{FILE}: {self.name(key)} is {value!r}; it must be a whole number, {limit}.")
        return value

    def number(self, key: str, above: float = -LARGEST, most: float = LARGEST) -> float:
        """A number above one limit and up to another."""
        value = self.take(key)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not above < value <= most:  # NaN is refused here too
            limit = f" above {above:g}" if above > -LARGEST else ""
            limit += f", at most {most:g}" if most < LARGEST else ""
            raise BundleError(f"{FILE}: {self.name(key)} is {value!r}; it must be a finite number{limit}.")
        return float(value)

    def text(self, key: str) -> str:
        """A string."""
        value = self.take(key)
        if not isinstance(value, str):
            raise BundleError(f"{FILE}: {self.name(key)} is {value!r}; it must be a string.")
        return value

    def rest(self) -> dict[str, Any]:
        """All fields that are left, unchecked."""
        left, self._left = self._left, {}
        return left

    def finish(self) -> None:
        """Refuses fields that nobody asked for: a misspelt name must not be lost in silence."""
        for key in self._left:
            raise BundleError(f"{FILE}: unknown field {self.name(key)}.")


def _read_layout(f: Fields) -> TokenLayout:
    vocab = f.integer("vocab_size", 16, MOST["vocab_size"])
    ids = {key: f.integer(key, 0, vocab - 1) for key in (*TAGS, "action_begin")}
    end = f.take("prompt_end")
    if not (isinstance(end, list) and len(end) == 2 and all(type(i) is int and 0 <= i < vocab for i in end)):
        raise BundleError(f"{FILE}: {f.name('prompt_end')} is {end!r}; it must be two token ids.")
    layout = TokenLayout(
        vocab_size=vocab,
        **ids,
        prompt_end=(end[0], end[1]),
        bins=f.integer("bins", 3, vocab - ids["action_begin"]),
        image_tokens=f.integer("image_tokens", 1),
        images=f.integer("images", 1),
        horizon=f.integer("horizon", 1, MOST["horizon"]),
        action_dim=f.integer("action_dim", ACTION_DIM, ACTION_DIM),
    )
    f.finish()
    if len({ids[key] for key in TAGS}) != len(TAGS):
        raise BundleError(f"{FILE}: two tokens of {f.path} share one id; every tag needs its own.")
    return layout


def _read_precision(top: Fields) -> str:
    precision = top.take_or("precision", "fp32")
    if precision not in PRECISIONS:
        raise BundleError(f"{FILE}: precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    return str(precision)


def _read_typical(top: Fields) -> tuple[str, ...]:
    raw = top.take_or("typical_thoughts", [])
    if not (isinstance(raw, list) and all(isinstance(words, str) for words in raw)):
        raise BundleError(f"{FILE}: typical_thoughts must be a list of strings.")
    if len(raw) > MOST["typical_thoughts"] or any(len(words) > MOST["thought_characters"] for words in raw):
        raise BundleError(
            f"{FILE}: typical_thoughts holds more than {MOST['typical_thoughts']} thoughts, or one of more "
            f"than {MOST['thought_characters']} characters. Export the policy again."
        )
    return tuple(raw)


def _read_image(f: Fields) -> ImageSpec:
    image = ImageSpec(f.integer("size", 8, MOST["image_size"]), f.number("mean"), f.number("std", above=0.0))
    f.finish()
    return image


def _read_cameras(top: Fields) -> tuple[Camera, ...]:
    raw = top.take("cameras")
    if not isinstance(raw, list) or not raw:
        raise BundleError(f"{FILE}: cameras must be a list with at least one camera.")
    cameras = []
    for index, entry in enumerate(raw):
        f = Fields(entry, f"cameras[{index}]")
        camera = Camera(f.text("name"), f.integer("rotation_deg", 0, 270))
        f.finish()
        if camera.rotation_deg not in ROTATIONS:
            raise BundleError(f"{FILE}: cameras[{index}].rotation_deg must be one of {ROTATIONS}.")
        cameras.append(camera)
    if len({camera.name for camera in cameras}) != len(cameras):
        raise BundleError(f"{FILE}: two cameras have the same name.")
    return tuple(cameras)


def _read_normaliser(f: Fields, action_dim: int) -> Normaliser:
    section = f.section("action")
    f.finish()
    try:
        return Normaliser.from_stats(section.rest(), action_dim, where=section.path)
    except ValueError as error:
        raise BundleError(f"{FILE}: {error}") from None


def _read_scale(f: Fields) -> ActionScale:
    scale = ActionScale(f.number("position_m", above=0.0), f.number("rotation_rad", above=0.0))
    f.finish()
    return scale


def _read_gripper(f: Fields) -> Gripper:
    gripper = Gripper(f.number("opening_m", above=0.0), f.number("closed_value"), f.number("open_value"))
    f.finish()
    if gripper.closed_value == gripper.open_value:
        raise BundleError(f"{FILE}: {f.path} closes and opens with the same value {gripper.open_value:g}.")
    return gripper
