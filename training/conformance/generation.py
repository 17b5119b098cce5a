"""Generation and the action pass, through a `Backend`: the code path that runs on a robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dtvla.policy import decoding
from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.backends.protocol import Backend
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.decoding import Sampler
from dtvla.policy.draft_lookup import Drafts
from dtvla.policy.images import Camera, ImageSpec
from dtvla.policy.options import CAMERAS
from dtvla.policy.speculative_decoding import ThoughtLimits, ThoughtWriter
from dtvla.policy.token_layout import NEVER, Bounds, TokenLayout, allowed
from training.conformance.golden_sets import Arrays, GoldenSet, visible
from training.conformance.report import GAP, LOGITS, Section
from training.model import sequence_forward
from training.model.kv_cache_decoder import TorchBackend

SPARE = 16  # cache rows beyond the longest sequence of a set
PAD_POSITION = 2  # what the reference gives to the left pads of a prompt
BEYOND = 4  # steps that a free run could take behind the reference's end, and must not


def torch_backend(golden: GoldenSet) -> Backend:
    """The torch model with its cache."""
    return TorchBackend(golden.model, cache_length(golden))


def bundle_backend(golden: GoldenSet, scratch: Path) -> Backend:
    """The set's checkpoint, exported to `scratch` and run by ONNX Runtime."""
    from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
    from model_export.onnx.export import export_decoder, export_vision

    export_vision(golden.model, scratch / "vision.onnx")
    export_decoder(golden.model, scratch / "decoder.onnx", whole_head=True)
    spec = PolicySpec(
        layout=golden.layout,
        image=ImageSpec(golden.model.config.vision.image_size),
        cameras=tuple(map(Camera, CAMERAS)),
        normaliser=Normaliser(golden.codec["q01"], golden.codec["q99"], golden.codec["action_mask"]),
        cache_length=cache_length(golden),
    )
    return OnnxRuntimeBackend(scratch, spec)


def cache_length(golden: GoldenSet) -> int:
    """Long enough for every sequence of the set."""
    longest = max(golden.golden[name].shape[-1] for name in golden.golden.names() if name.endswith("_ids"))
    return int(longest) + golden.layout.slots + SPARE


def check_generation(golden: GoldenSet, name: str, backend: Backend, out: Section) -> None:
    """Prefill mask and positions, greedy thought, stop rule, logits of every step, of each sample alone."""
    case, layout = golden.case(name), golden.layout
    prompts = case["prompt_ids"]
    real = case["prompt_attention_mask"].astype(bool) if "prompt_attention_mask" in case else prompts >= 0
    _check_prefill(case, real, out)
    for row, prompt in enumerate(_rows(prompts, real)):
        expected = _thought_of(case, row, len(prompt))
        if "input_cot_ids" in case:
            known = case["input_cot_ids"][row][case["attention_mask"][row].astype(bool)]
            out.equal(f"prompt and thought{_of(row, prompts)}", np.append(prompt, expected), known)
        features = backend.encode(_images(golden, name, row, len(prompts)))
        logits = _step_logits(backend, prompt, expected, features)
        if "cot_step_cols" in case:
            columns, sums = case["cot_step_cols"], case["cot_step_logsumexp"]
            out.close("step logits", logits[:, columns], case["cot_step_logits_cols"], LOGITS)
            out.close("step logsumexp", np.logaddexp.reduce(logits, -1), sums, LOGITS)
        logits[:, layout.banned()] = -np.inf
        top = np.partition(logits, -2, axis=-1)
        gap = top[:, -1] - top[:, -2]
        out.same_ids(f"thought ids{_of(row, prompts)}", logits.argmax(-1), expected, gap)
        if (gap > GAP).all():  # then a free run must give the same and stop by itself
            cap = len(expected) + (BEYOND if decoding.is_complete(expected, layout) else 0)
            for what, thought in _free_runs(backend, layout, prompt, features, expected, cap).items():
                out.equal(f"thought, {what}{_of(row, prompts)}", thought, expected)
        else:
            out.skip(f"free run{_of(row, prompts)}: a step leads by less than {GAP}")
    if "image_features" in case:
        pixels = golden.pixels(name).numpy()
        features = case["image_features"]
        out.close("image features", backend.encode(pixels).reshape(features.shape), features, LOGITS)


def _free_runs(
    backend: Backend,
    layout: TokenLayout,
    prompt: NDArray[np.int64],
    features: NDArray[np.float32],
    expected: NDArray[np.int64],
    cap: int,
) -> dict[str, list[int]]:
    """The thought written without a draft, with itself as draft, and with one that is wrong in the middle."""
    wrong = expected.copy()
    wrong[len(wrong) // 2] = layout.pad
    thoughts = {}
    for what, draft in {"free run": None, "itself as draft": expected, "wrong draft": wrong}.items():
        drafts = Drafts()
        if draft is not None:
            drafts.remember(draft)
        writer = ThoughtWriter(layout, Sampler(layout), ThoughtLimits(cap), drafts, 0.0, prompt, features)
        thoughts[what] = writer.write(backend)
    return thoughts


def check_action_pass(golden: GoldenSet, name: str, backend: Backend, out: Section) -> None:
    """The cached action pass of a single sample: logits, bins, ids, values."""
    case, layout = golden.case(name), golden.layout
    sequence = case["input_cot_ids"][0].astype(np.int64)
    prompt, thought = _split(sequence[sequence != layout.pad], layout)
    features = backend.encode(golden.pixels(name).numpy())
    _feed(backend, prompt, thought, features)
    pads = np.full(int((sequence == layout.pad).sum()), layout.pad)
    if len(pads):  # the reference moves them behind <eos>, where the action rows see them
        start = len(prompt) + len(thought) - 1
        block = np.concatenate([thought[-1:], layout.action_block()[1:], pads])
        bounds = Bounds(len(prompt), start, start + len(block), start)
        logits = backend.decode(block, bounds, action_rows=range(layout.slots)).action
    else:
        logits = decoding.act(backend, layout, len(prompt), thought, close=False)
    out.equal("action start", len(prompt) + len(thought) - 1, case["action_start_idx"][0])
    check_actions(case, layout, logits[None], out)


def check_unpadded_rows(golden: GoldenSet, name: str, backend: Backend, out: Section) -> None:
    """Rows of a batch, each alone: what the reference gives without its visible pads."""
    case, layout = golden.case(name), golden.layout
    for row, ids in enumerate(_rows(case["input_cot_ids"], case["attention_mask"].astype(bool))):
        prompt, thought = _split(ids, layout)
        images = _images(golden, name, row, len(case["input_cot_ids"]))
        _feed(backend, prompt, thought, backend.encode(images))
        logits = decoding.act(backend, layout, len(prompt), thought, close=False)
        out.close(f"action logits alone, row {row}", logits, case["action_logits_unpadded"][row], LOGITS)


def check_actions(case: Arrays, layout: TokenLayout, logits: NDArray[np.float32], out: Section) -> None:
    """Action logits [B, slots, bins] and everything that is read from them."""
    out.close("action logits", logits, case["action_logits"], LOGITS)
    top = np.partition(logits, -2, axis=-1)
    gap = case["action_top1_top2_gap"]
    out.close("action margin", top[..., -1] - top[..., -2], gap, 2 * LOGITS)
    columns = logits.argmax(-1)
    out.same_ids("action column", columns, case["action_bin_argmax_col"], gap)
    out.same_ids("action ids", columns + layout.action_begin, case["action_token_ids"], gap)
    out.same_ids("action bins", layout.bins - 1 - columns, case["action_bins"], gap)
    values = ActionTokenizer(layout.bins, layout.action_begin).decode_columns(case["action_bin_argmax_col"])
    shape = case["normalized_actions"].shape
    out.close("normalised actions", values.reshape(shape), case["normalized_actions"], 1e-12)


def check_one_pass(golden: GoldenSet, name: str, backend: Backend, out: Section) -> None:
    """A known thought scored in one pass: log-probabilities and entropies of the reference's RL forward."""
    case, layout = golden.case(name), golden.layout
    ids = case["input_ids"][0].astype(np.int64)
    prompt, _ = _split(ids, layout)
    whole = np.concatenate([ids, layout.action_block()[1:]])
    start, count = len(ids) - 1, int(case["cot_length"])
    result = backend.decode(
        whole,
        Bounds(len(prompt), start, len(whole), 0),
        features=backend.encode(golden.pixels(name).numpy()),
        think_rows=range(start - count, start),
        action_rows=range(start, start + layout.slots),
    )
    t_thought, t_action = golden.temperatures(name)
    scores = sequence_forward.ban(torch.from_numpy(result.think)[None], layout)
    log_prob, entropy = sequence_forward.log_probs(scores, torch.from_numpy(ids[None, -count:]), t_thought)
    out.close("thought log-probs in one pass", log_prob, case["cot_logprobs"], LOGITS)
    out.close("thought entropy in one pass", entropy, case["cot_entropy"], LOGITS)
    chosen = case.ids("responses") - layout.action_begin
    log_prob, entropy = sequence_forward.log_probs(torch.from_numpy(result.action)[None], chosen, t_action)
    out.close("action log-probs in one pass", log_prob, case["action_logprobs"], LOGITS)
    out.close("action entropy in one pass", entropy, case["action_entropy"], LOGITS)
    columns = result.action.argmax(-1)
    top = np.partition(result.action, -2, axis=-1)
    gap = top[:, -1] - top[:, -2]
    out.same_ids("greedy responses", columns + layout.action_begin, case["responses"][0], gap)


def _check_prefill(case: Arrays, real: NDArray[np.bool_], out: Section) -> None:
    if "prefill_mask_additive" not in case:
        return
    mask = np.zeros((len(real), real.shape[1], real.shape[1]), np.bool_)
    positions = np.full(real.shape, PAD_POSITION)
    for row, is_real in enumerate(real):
        n = int(is_real.sum())
        ours = allowed(Bounds(n, NEVER, n, 0), n, n)
        mask[row][:, is_real] = ours[-1]  # a pad's own row sees what the prompt's last row sees
        mask[row][np.ix_(is_real, is_real)] = ours
        positions[row, is_real] = np.arange(1, n + 1)
    out.equal("prefill mask", mask, visible(case["prefill_mask_additive"][:, 0]))
    out.equal("prefill positions", positions, case["prefill_position_ids"])


def _step_logits(
    backend: Backend, prompt: NDArray[np.int64], thought: NDArray[np.int64], features: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Raw logits [thought, V] of every step along a given thought."""
    n = len(prompt)
    rows = [decoding.prefill(backend, prompt, features).copy()]
    for t in range(len(thought) - 1):
        bounds = Bounds(n, NEVER, n + t + 1, n + t)
        rows.append(backend.decode(thought[t : t + 1], bounds, think_rows=(0,)).think[0].copy())
    return np.stack(rows)


def _thought_of(case: Arrays, row: int, prompt_len: int) -> NDArray[np.int64]:
    thought: NDArray[np.int64]
    if "cot_ids" in case:
        thought = case["cot_ids"].astype(np.int64)
    else:
        real = case["attention_mask"][row].astype(bool)
        thought = case["input_cot_ids"][row][real][prompt_len:].astype(np.int64)
    return thought


def _feed(
    backend: Backend, prompt: NDArray[np.int64], thought: NDArray[np.int64], features: NDArray[np.float32]
) -> None:
    """Prompt and all thought tokens but the last into the cache, in one pass each."""
    n, known = len(prompt), thought[:-1]
    decoding.prefill(backend, prompt, features)
    if len(known):
        backend.decode(known, Bounds(n, NEVER, n + len(known), n), think_rows=(len(known) - 1,))


def _split(sequence: NDArray[np.int64], layout: TokenLayout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = (sequence[:-1] == layout.prompt_end[0]) & (sequence[1:] == layout.prompt_end[1])
    n = int(np.flatnonzero(pairs)[0]) + 2
    return sequence[:n], sequence[n:]


def _rows(ids: NDArray[np.int32], real: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    return [row[keep].astype(np.int64) for row, keep in zip(ids, real, strict=True)]


def _images(golden: GoldenSet, name: str, row: int, rows: int) -> NDArray[np.float32]:
    pixels = golden.pixels(name).numpy()
    each = len(pixels) // rows
    return pixels[row * each : (row + 1) * each]


def _of(row: int, rows: NDArray[np.int32]) -> str:
    return f", row {row}" if len(rows) > 1 else ""
