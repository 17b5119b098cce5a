"""What a bundle says about its TensorRT engines: for which GPU and version each was built, from which graph.

An engine is a graph compiled for one model of GPU and one version of TensorRT; elsewhere it does not load, or
runs tactics that were timed on another machine. The field `engines` of policy.json is optional: a bundle
without it runs its ONNX graphs. Nothing here imports TensorRT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from dtvla.errors import BundleError, InputError
from dtvla.policy.bundle.policy_spec import FILE, PRECISIONS
from dtvla.structured import FieldError, matching, one_of, read

GRAPHS = ("vision", "decoder")
_REMEDY = (
    "Build engines on this machine (python -m model_export.engine BUNDLE), "
    "or run the ONNX graphs (--backend onnxruntime)."
)
_RISING = "three whole numbers from 0 upwards that do not fall"


class Span(NamedTuple):
    """How many of something a pass may have, and the number that its kernels were timed for."""

    low: int
    usual: int
    high: int

    def holds(self, count: int) -> bool:
        """Whether a count lies in the span."""
        return self.low <= count <= self.high


NONE = Span(0, 0, 0)
Rising = Annotated[Span, Meta(description=_RISING)]


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: the sizes of passes it serves (of the vision graph, `rows` are images)."""

    name: str
    rows: Rising
    features: Rising = NONE
    think_rows: Rising = NONE
    action_rows: Rising = NONE

    def fits(self, rows: int, features: int, think_rows: int, action_rows: int) -> bool:
        """Whether a pass with these sizes can run under this profile."""
        return (
            self.rows.holds(rows)
            and self.features.holds(features)
            and self.think_rows.holds(think_rows)
            and self.action_rows.holds(action_rows)
        )


@dataclass(frozen=True)
class Engine:
    """One engine file of a bundle."""

    file: str
    graph: Annotated[str, one_of(*GRAPHS)]
    gpu: str  # the driver's name of the device, such as "NVIDIA H200"
    compute_capability: Annotated[str, matching(r"\d+\.\d+", "such as 9.0")]
    tensorrt: Annotated[str, matching(r"\d+\.\d+\.\d+", "a version of three numbers")]
    precision: Annotated[str, one_of(*PRECISIONS)]  # of the ONNX graph it was built from
    onnx_sha256: Annotated[str, matching("[0-9a-f]{64}", "a SHA-256 in hex")]  # `graph_digest` of that graph
    profiles: Annotated[tuple[Profile, ...], Meta(min_length=1)]  # in the engine's order, narrow ones first

    def runs_on(self) -> str:
        """What it was built for, in words."""
        return _place(self.gpu, self.compute_capability, self.tensorrt)

    def to_json(self) -> dict[str, Any]:
        """The entry of policy.json."""
        entry = asdict(self)
        entry["profiles"] = [
            {key: list(value) if isinstance(value, Span) else value for key, value in asdict(profile).items()}
            for profile in self.profiles
        ]
        return entry


class EnginePair(NamedTuple):
    """The engines of both graphs for one machine."""

    vision: Engine
    decoder: Engine


def graph_digest(files: Mapping[str, str], graph: str) -> str:
    """SHA-256 in hex of an ONNX graph: of its file, or of both files' hashes when weights lie beside it.

    Args:
        files: the bundle's hashes by file name.
        graph: one of GRAPHS.
    """
    own, weights = files[f"{graph}.onnx"], files.get(f"{graph}.onnx.data")
    return own if weights is None else hashlib.sha256(f"{own}{weights}".encode()).hexdigest()


def read_engines(raw: object, files: Mapping[str, str]) -> tuple[Engine, ...]:
    """Reads and checks the field `engines` of policy.json.

    Args:
        raw: its content, a list.
        files: the bundle's hashes by file name.

    Raises:
        BundleError: an entry is malformed, its file is not covered by `files`, or it was built from another
            ONNX graph than the one in the bundle.
    """
    if not isinstance(raw, list):
        raise BundleError(f"{FILE}: engines is {type(raw).__name__}; it must be a list.")
    try:
        engines = read(tuple[Engine, ...], raw, "engines", complete=True)
    except FieldError as error:
        raise BundleError(f"{FILE}: {error}") from None
    for index, engine in enumerate(engines):
        _check_spans(engine, f"engines[{index}]")
        if engine.file not in files:
            raise BundleError(f"{FILE}: engines[{index}].file is {engine.file!r}, which files does not list.")
        if (present := graph_digest(files, engine.graph)) != engine.onnx_sha256:
            raise BundleError(
                f"{engine.file} was built from a {engine.graph}.onnx whose SHA-256 begins "
                f"{engine.onnx_sha256[:12]}; the bundle's {engine.graph}.onnx begins {present[:12]}. "
                f"{_REMEDY}"
            )
    return engines


def choose(engines: Sequence[Engine], gpu: str, compute_capability: str, tensorrt_version: str) -> EnginePair:
    """The engines for a machine; kernels are timed for one model of GPU, so its name must be the same too.

    Args:
        engines: of a bundle.
        gpu: the driver's name of the device.
        compute_capability: of the device, such as "9.0".
        tensorrt_version: of the library; only its first three numbers count.

    Raises:
        BundleError: there is none; the sentence says what the engines are for and what is here.
    """
    if not engines:
        raise BundleError(f"The bundle has no TensorRT engine. {_REMEDY}")
    here = _place(gpu, compute_capability, short_version(tensorrt_version))
    fitting = [engine for engine in engines if engine.runs_on() == here]
    pair = {graph: [e for e in fitting if e.graph == graph] for graph in GRAPHS}
    if not fitting:
        places = " or ".join(dict.fromkeys(engine.runs_on() for engine in engines))
        raise BundleError(f"The bundle's TensorRT engines are for {places}; here is {here}. {_REMEDY}")
    for graph in GRAPHS:
        if not pair[graph]:
            raise BundleError(f"The bundle's TensorRT engines for {here} lack its {graph} graph. {_REMEDY}")
    return EnginePair(pair["vision"][-1], pair["decoder"][-1])


def profile_for(
    profiles: Sequence[Profile], rows: int, features: int, think_rows: int, action_rows: int
) -> int:
    """The index of the first profile that serves a pass of these sizes.

    Raises:
        InputError: none does.
    """
    for index, profile in enumerate(profiles):
        if profile.fits(rows, features, think_rows, action_rows):
            return index
    raise InputError(
        f"A pass of {rows} rows with {features} image features, {think_rows} rows of words and {action_rows} "
        f"rows of actions fits none of the engine's profiles ({', '.join(p.name for p in profiles)})."
    )


def widest(profiles: Sequence[Profile]) -> Profile:
    """A profile that holds the most of everything: what buffers are made for."""
    most = {
        key: Span(0, 0, max(getattr(profile, key).high for profile in profiles))
        for key in ("rows", "features", "think_rows", "action_rows")
    }
    return Profile("widest", **most)


def short_version(version: str) -> str:
    """The first three numbers of a version: "10.16.1.11" is "10.16.1"."""
    return ".".join(version.split(".")[:3])


def _place(gpu: str, compute_capability: str, tensorrt: str) -> str:
    return f"{gpu} (compute capability {compute_capability}) with TensorRT {tensorrt}"


def _check_spans(engine: Engine, path: str) -> None:
    for index, profile in enumerate(engine.profiles):
        for name in ("rows", "features", "think_rows", "action_rows"):
            span = getattr(profile, name)
            if not 0 <= span.low <= span.usual <= span.high:
                raise BundleError(
                    f"{FILE}: {path}.profiles[{index}].{name} is {list(span)}; it must be {_RISING}."
                )
