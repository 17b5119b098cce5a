"""Loading and saving checkpoints: published ones, ours, and those of transformers' releases.

A checkpoint is a folder (or a hub id) with config.json, safetensors (one file or shards with an index),
tokenizer.json and norm_stats.json; ours add policy.json. Key names of transformers 4.48 and of later
releases are understood; saving uses the 4.48 names, which all of them load.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from dtvla.errors import BundleError
from dtvla.policy.action_tokenizer import Normaliser
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.images import Camera, ImageSpec
from dtvla.policy.options import CAMERAS
from dtvla.policy.prompt import load_tokenizer
from dtvla.policy.token_layout import TokenLayout
from training.model.config import ModelConfig
from training.model.deepthinkvla import DeepThinkVLA

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_FILES = ["config.json", "*.safetensors", INDEX, "tokenizer.json", "*norm_stats.json", "policy.json"]
FAMILY, SECTIONS = "paligemma", ("text_config", "vision_config")
ACTIVATION = "gelu_pytorch_tanh"
EMBEDDING = "language_model.model.embed_tokens.weight"
HEADS = ("lm_head.weight", "language_model.lm_head.weight")  # tied, so usually not stored
# In order: transformers >= 5 without `vision_model`, 4.52 to 4.57 with it, and what all of them prefix.
RENAMES = (
    (re.compile(r"^model\.vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
    (re.compile(r"^model\.language_model\.(?!model\.)"), "language_model.model."),
    (re.compile(r"^model\.(?=vision_tower\.|multi_modal_projector\.|language_model\.)"), ""),
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
)
BUFFERS = ("position_ids", "inv_freq")  # some releases stored these constants
# The evaluation of the reference: cap 2048, all ten actions executed, LIBERO's two cameras.
PUBLISHED_THOUGHT_CAP, PUBLISHED_CACHE = 2048, 3072


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, tensor, field or id."""


class PolicyCheckpoint(NamedTuple):
    """A checkpoint with everything that a bundle needs."""

    model: DeepThinkVLA
    spec: PolicySpec
    tokenizer: Tokenizer


def resolve(source: str | Path) -> Path:
    """The folder of a checkpoint; a hub id such as `owner/name` is downloaded first, with progress.

    Raises:
        CheckpointError: neither a folder nor a hub id that can be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise CheckpointError(f"{source} is neither a checkpoint folder nor a hub id of the form owner/name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises errors of several libraries
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{source} is not a folder here and cannot be fetched from the hub ({first_line}). Check the "
            "name and the network, or download the checkpoint elsewhere and give its folder."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file.

    Raises:
        CheckpointError: missing or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing from the checkpoint.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return data


def read_config(folder: Path) -> ModelConfig:
    """The model configuration of a checkpoint folder.

    Raises:
        CheckpointError: another family, a missing field, or a variant this code does not compute.
    """
    path = folder / "config.json"
    raw = read_json(path)
    try:
        if raw.get("model_type") == FAMILY:
            _refuse_variants(raw)
        return ModelConfig.from_hf(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _refuse_variants(raw: dict[str, Any]) -> None:
    """Raises ValueError for what a config of this family can ask for and this code does not compute."""
    for section in SECTIONS:
        if not isinstance(raw.get(section, {}), dict):
            raise ValueError(f"{section} must hold a JSON object, not {raw[section]!r}.")
    text, vision = (raw.get(section, {}) for section in SECTIONS)
    rope = text.get("rope_parameters") or {}  # the place of both since transformers 5
    if "rope_theta" in rope:
        text.setdefault("rope_theta", rope["rope_theta"])
    scaling = text.get("rope_scaling") or {}
    for field, found, ours in (
        ("text_config.model_type", text.get("model_type"), "gemma"),  # PaliGemma 2 has gemma2
        ("vision_config.model_type", vision.get("model_type"), "siglip_vision_model"),
        ("text_config.attention_bias", text.get("attention_bias"), False),
        ("text_config.rope_parameters.rope_type", rope.get("rope_type"), "default"),
        ("text_config.rope_scaling", scaling.get("rope_type") or scaling.get("type"), "default"),
        ("vision_config.vision_use_head", vision.get("vision_use_head"), False),
        ("vision_config.num_channels", vision.get("num_channels"), 3),
        ("tie_word_embeddings", raw.get("tie_word_embeddings"), True),
    ):
        if found is not None and found != ours:
            raise ValueError(f"{field} is {found!r}; this family has {ours!r}.")
    for section, config in zip(SECTIONS, (text, vision), strict=True):
        activation = config.get("hidden_activation") or config.get("hidden_act") or ACTIVATION
        legacy = section == "text_config" and activation == "gelu"  # Gemma's configs say gelu and mean tanh
        if activation != ACTIVATION and not legacy:
            raise ValueError(f"{section} has the activation {activation!r}; this family has {ACTIVATION}.")


def canonical_name(name: str) -> str:
    """A tensor's name in transformers 4.48, whichever release wrote it."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def read_tensors(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder under canonical names, without the tied head.

    Raises:
        CheckpointError: a missing or damaged file, a name twice, or a head that is not the embedding.
    """
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 - not a dict
                    name = canonical_name(stored)
                    if name in tensors:
                        raise CheckpointError(f"{path}: the tensor {name} is stored twice.")
                    if name.endswith(BUFFERS):
                        continue
                    tensor = file.get_tensor(stored)
                    if not tensor.is_floating_point():
                        raise CheckpointError(f"{path}: the tensor {name} holds {tensor.dtype}, not weights.")
                    tensors[name] = tensor.to(dtype)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}). Download it again.") from None
    for head in HEADS:
        stored_head = tensors.pop(head, None)
        embedding = tensors.get(EMBEDDING)
        if stored_head is not None and (embedding is None or not torch.equal(stored_head, embedding)):
            raise CheckpointError(f"{folder}: {head} differs from {EMBEDDING}, but this family ties the two.")
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{folder / INDEX}: the field weight_map is missing or empty.")
        files = sorted({folder / Path(str(name)).name for name in shards.values()})
    else:
        files = [folder / SINGLE]
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing from the checkpoint. Download it again.")
    return files


def load_model(source: str | Path, dtype: torch.dtype = torch.float32) -> DeepThinkVLA:
    """A checkpoint's model in eval mode, every tensor converted to `dtype`.

    Raises:
        CheckpointError: a missing, extra or wrongly shaped tensor (named), or whatever else is wrong.
    """
    folder = resolve(source)
    with torch.device("meta"):
        model = DeepThinkVLA(read_config(folder))
    tensors = read_tensors(folder, dtype)
    expected = model.state_dict()
    for name in sorted(set(expected) - set(tensors)):
        raise CheckpointError(f"{folder}: the tensor {name} is missing.")
    for name in sorted(set(tensors) - set(expected)):
        raise CheckpointError(f"{folder}: the tensor {name} is not part of a model with this config.json.")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} has the shape {list(tensor.shape)}, "
                f"config.json asks for {list(expected[name].shape)}."
            )
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def save_policy(
    folder: Path, config: ModelConfig, weights: dict[str, Tensor], spec: PolicySpec, tokenizer: Tokenizer
) -> None:
    """Writes what `load_policy` reads, from weights that may be gathered from many processes."""
    with torch.device("meta"):
        model = DeepThinkVLA(config)
    model.load_state_dict(weights, assign=True)
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "policy.json").write_text(json.dumps(spec.to_json(), indent=1), encoding="utf-8")


def save_model(model: DeepThinkVLA, folder: Path, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes config.json and the weights under 4.48 names, in shards when they exceed `max_shard_bytes`."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("*.safetensors"), *folder.glob(INDEX)):
        stale.unlink()
    config = json.dumps(model.config.raw, indent=2)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in model.state_dict().items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor.detach().cpu().contiguous()
        used += size
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    placed = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        placed.update(dict.fromkeys(shard, file))
    total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_spec(folder: Path, config: ModelConfig) -> PolicySpec:
    """What a policy is beside its weights: policy.json, or for published checkpoints norm_stats.json.

    Raises:
        CheckpointError: statistics or fields are missing or wrong (named).
    """
    path = folder / "policy.json"
    if path.is_file():
        try:
            spec = PolicySpec.from_json({**read_json(path), "files": {}, "sha256": ""})
        except BundleError as error:
            raise CheckpointError(f"{folder}: {error}") from None
        if spec.layout != config.layout:
            raise CheckpointError(f"{path}: the layout differs from the one in config.json.")
        return spec
    layout = config.layout
    places = (folder / "norm_stats.json", folder / "meta/norm_stats.json")
    stats_file = next((place for place in places if place.is_file()), None)
    if stats_file is None:
        raise CheckpointError(f"{folder} has no norm_stats.json; without it actions have no units.")
    stats = read_json(stats_file).get("action")
    if not isinstance(stats, dict):
        raise CheckpointError(f"{stats_file}: the field action is missing.")
    try:
        if "mask" not in stats:  # the published form
            # The gripper passes unchanged, but nonsense there too means that the statistics are broken.
            Normaliser.from_stats({**stats, "mask": [True] * layout.action_dim}, layout.action_dim, "action")
            stats["mask"] = [True] * (layout.action_dim - 1) + [False]
        normaliser = Normaliser.from_stats(stats, layout.action_dim, where="action")
    except ValueError as error:
        raise CheckpointError(f"{stats_file}: {error}") from None
    if not normaliser.mask.any():
        raise CheckpointError(f"{stats_file}: action.mask is false for every dimension; nothing has units.")
    return PolicySpec(
        layout=layout,
        image=ImageSpec(config.vision.image_size),
        cameras=tuple(map(Camera, CAMERAS)),
        normaliser=normaliser,
        thought_cap=PUBLISHED_THOUGHT_CAP,
        cache_length=PUBLISHED_CACHE,
        provenance={"checkpoint": folder.name},
    )


def read_tokenizer(folder: Path, layout: TokenLayout) -> Tokenizer:
    """A checkpoint's tokenizer, compared with its layout.

    Raises:
        CheckpointError: it is missing, or an id differs.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing from the checkpoint.")
    try:
        return load_tokenizer(path, layout)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def load_policy(source: str | Path, dtype: torch.dtype = torch.float32) -> PolicyCheckpoint:
    """A checkpoint's model, spec and tokenizer, checked against each other.

    Raises:
        CheckpointError: anything is missing or does not fit.
    """
    folder = resolve(source)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config.layout)
    spec = read_spec(folder, config)
    return PolicyCheckpoint(load_model(folder, dtype), spec, tokenizer)
