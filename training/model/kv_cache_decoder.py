"""The torch model with a static key/value cache: batched decisions without a single visible pad.

Every sample has its own four integers (prefix_len, action_start, kv_len, q_start), so samples of
different length advance together; rows that a shorter sample does not need are written behind its
`kv_len`, where nobody looks, and are overwritten later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtvla.policy.backends.batch_padding import pad_batch
from dtvla.policy.backends.protocol import CPU_ROW_COST, GPU_ROW_COST, Logits, Pass
from dtvla.policy.token_layout import NEVER, Bounds, visible
from training.model.attention import attend, rope_tables
from training.model.deepthinkvla import DeepThinkVLA, GemmaLayer

# q [B, N, S, D], key and value cache [B, K, C, D], int32 bounds [B, 4], scale -> [B, N, S, D]
CacheAttention = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


class CachedDecoder:
    """A decoder with its cache for `batch` samples of up to `length` positions.

    `attention` replaces torch's attention under a mask tensor by one that reads the bounds itself; shapes
    and addresses then stay the same from call to call, which a CUDA graph asks for.
    """

    def __init__(
        self, model: DeepThinkVLA, batch: int, length: int, attention: CacheAttention | None = None
    ) -> None:
        self.model = model
        self.attention = attention
        text = model.config.text
        weight = model.decoder.embed_tokens.weight
        shape = (batch, text.kv_heads, length, text.head_dim)
        self._caches = [
            (weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(model.config.text.layers)
        ]
        self.length = length

    @torch.no_grad()
    def run(self, ids_BS: Tensor, bounds_B4: Tensor, features_BFH: Tensor | None = None) -> Tensor:
        """Hidden states [B, S, H] of rows `q_start ..`; their keys and values go into the cache.

        Args:
            ids_BS: token ids, `layout.SLOT` for action slots.
            bounds_B4: each sample's mask as `layout.Bounds`.
            features_BFH: image features for the image ids among `ids_BS`.
        """
        text, rows = self.model.config.text, torch.arange(ids_BS.shape[1], device=ids_BS.device)
        at = bounds_B4[:, 3, None] + rows
        cos, sin = rope_tables(at + 1, text.head_dim, text.rope_theta)
        bounds = bounds_B4.int()
        keys = self.length if self.attention else int(bounds_B4[:, 2].max())  # nobody looks further
        mask = None if self.attention else self._mask(bounds_B4, at, keys)
        sample = torch.arange(len(ids_BS), device=ids_BS.device)[:, None]
        x = self.model.embed(ids_BS, features_BFH) * text.hidden_size**0.5
        for layer, (key, value) in zip(self.model.decoder.layers, self._caches, strict=True):
            assert isinstance(layer, GemmaLayer)
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            key[sample, :, at] = k.transpose(1, 2)
            value[sample, :, at] = v.transpose(1, 2)
            if self.attention:
                out = self.attention(q, key, value, bounds, text.head_dim**-0.5)
            else:
                out = attend(q, key[:, :, :keys], value[:, :, :keys], mask)
            x = x + layer.self_attn.merge(out)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.decoder.norm(x)

    def _mask(self, bounds_B4: Tensor, at_BS: Tensor, count: int) -> Tensor:
        """The mask rule as a tensor [B, 1, S, C] over the first C keys."""
        prefix, start, keys = (bounds_B4[:, c, None, None] for c in range(3))
        j = torch.arange(count, device=at_BS.device)
        i = at_BS[:, :, None]
        mask: Tensor = visible(i, j, prefix, start, keys)
        return mask[:, None]

    def clear(self, sequence: int | None = None) -> None:
        """Zeroes the cache, of all sequences or of one."""
        which = slice(None) if sequence is None else sequence
        for key, value in self._caches:
            key[which] = 0.0
            value[which] = 0.0


class TorchBackend:
    """The torch model as a `dtvla.policy.backends.protocol.Backend`: one sequence, arrays in and out."""

    def __init__(self, model: DeepThinkVLA, cache_length: int) -> None:
        self._model = model
        self._decoder = CachedDecoder(model, 1, cache_length)

    @property
    def cache_length(self) -> int:
        """How many positions the cache holds."""
        return self._decoder.length

    @property
    def row_cost(self) -> float:
        """See `Backend.row_cost`."""
        return GPU_ROW_COST if self._model.decoder.embed_tokens.weight.is_cuda else CPU_ROW_COST

    def sibling(self) -> TorchBackend:
        """See `Backend.sibling`."""
        return TorchBackend(self._model, self._decoder.length)

    def clear(self) -> None:
        """Zeroes the cache."""
        self._decoder.clear()

    @torch.no_grad()
    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised images [N, 3, S, S] to features [N * tokens, hidden]."""
        return self._model.image_features(torch.from_numpy(pixels)).flatten(0, 1).numpy()

    @torch.no_grad()
    def decode(
        self,
        ids: NDArray[np.int64],
        bounds: Bounds,
        *,
        features: NDArray[np.float32] | None = None,
        think_rows: Sequence[int] = (),
        action_rows: Sequence[int] = (),
    ) -> Logits:
        """One pass (see `Backend.decode`)."""
        images = None if features is None else torch.from_numpy(features)[None]
        rows = torch.from_numpy(np.asarray(ids, np.int64))[None]
        hidden = self._decoder.run(rows, torch.tensor([bounds]), images)
        think = self._model.logits(hidden[:, list(think_rows)])[0]
        action = self._model.action_logits(hidden[:, list(action_rows)])[0]
        return Logits(think.numpy(), action.numpy())


class TorchBatch:
    """The torch model as a `dtvla.policy.backends.protocol.BatchBackend`: several sequences in one pass.

    A pass is as long as its longest sequence needs: shorter ones are filled up with rows behind their
    `kv_len`, where nobody looks and the next pass writes.

    Args:
        model: in eval mode, on any device.
        size: number of sequences.
        cache_length: positions of each.
        slack: how much longer the longest rest of a thought may be than another sequence's.
    """

    def __init__(self, model: DeepThinkVLA, size: int, cache_length: int, slack: int) -> None:
        self.size, self._model = size, model
        self._decoder = CachedDecoder(model, size, cache_length + slack)
        self._device = model.decoder.embed_tokens.weight.device

    @torch.no_grad()
    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised images [N, 3, S, S] to features [N * tokens, hidden]."""
        weight = self._model.decoder.embed_tokens.weight
        features = self._model.image_features(torch.from_numpy(pixels).to(weight))
        return features.flatten(0, 1).float().cpu().numpy()

    def clear(self, sequence: int) -> None:
        """Zeroes the cache of one sequence."""
        self._decoder.clear(sequence)

    @torch.no_grad()
    def decode(self, passes: Sequence[Pass | None]) -> list[Logits | None]:
        """See `BatchBackend.decode`."""
        ids, bounds = pad_batch(passes, self.size, self._decoder.length)
        asked = [step for step in passes if step is not None]
        pictured = [step.features for step in asked if step.features is not None]
        if pictured and len(pictured) < len(asked):
            raise ValueError("Either all sequences of a pass bring image features, or none does.")
        features = np.zeros((self.size, *pictured[0].shape), np.float32) if pictured else None
        for b, step in enumerate(passes):
            if features is not None and step is not None:
                features[b] = step.features
        hidden = self._decoder.run(
            torch.from_numpy(ids).to(self._device),
            torch.from_numpy(bounds).to(self._device),
            None if features is None else torch.from_numpy(features).to(self._device),
        )
        think, act = ([list(rows) for rows in kind] for kind in _rows(passes))
        words = _per_sequence(self._model.logits(_pick(hidden, think)), think)
        actions = _per_sequence(self._model.action_logits(_pick(hidden, act)), act)
        return [None if step is None else Logits(words[b], actions[b]) for b, step in enumerate(passes)]


def _per_sequence(logits_RV: Tensor, rows: list[list[int]]) -> list[NDArray[np.float32]]:
    """Logits of all rows, taken apart again."""
    return np.split(logits_RV.float().cpu().numpy(), np.cumsum([len(own) for own in rows])[:-1])


def _rows(passes: Sequence[Pass | None]) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """The rows of each sequence at which either head is asked."""
    asked = [(step.think_rows, step.action_rows) if step is not None else ((), ()) for step in passes]
    return [think for think, _ in asked], [act for _, act in asked]


def _pick(hidden_BSH: Tensor, rows: list[list[int]]) -> Tensor:
    """The hidden states [R, H] of some rows of each sample, sample after sample."""
    sample = [b for b, own in enumerate(rows) for _ in own]
    return hidden_BSH[sample, [row for own in rows for row in own]]


@torch.no_grad()
def decide_batch(
    model: DeepThinkVLA, prompts: list[NDArray[np.int64]], pixels: Tensor, cap: int, *, close: bool = True
) -> tuple[list[NDArray[np.int64]], Tensor]:
    """Greedy thoughts and action logits of a batch, each equal to what the sample gives alone.

    Args:
        model: in eval mode.
        prompts: ids of each sample's prompt.
        pixels: [B * images, 3, S, S], sample after sample.
        cap: most tokens of a thought.
        close: as in `dtvla.policy.decoding.act`.

    Returns:
        The thoughts (ids, tags included) and the action logits [B, slots, bins].
    """
    layout = model.config.layout
    batch = len(prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    decoder = CachedDecoder(model, batch, int(lengths.max()) + cap + layout.slots + 5)
    ids = torch.full((batch, int(lengths.max())), layout.pad)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.from_numpy(prompt)
    never = torch.full_like(lengths, NEVER)
    features = model.image_features(pixels)
    features = features.reshape(batch, -1, features.shape[-1])
    hidden = decoder.run(ids, torch.stack([lengths, never, lengths, torch.zeros_like(lengths)], 1), features)
    hidden = hidden[torch.arange(batch), lengths - 1]
    banned = torch.from_numpy(layout.banned())
    thoughts: list[list[int]] = [[] for _ in prompts]
    open_ = torch.ones(batch, dtype=torch.bool)
    for count in range(1, cap + 1):
        logits = model.logits(hidden)
        logits[:, banned] = -torch.inf
        tokens = logits.argmax(-1)
        for b in torch.nonzero(open_).flatten().tolist():
            thoughts[b].append(int(tokens[b]))
            open_[b] = tuple(thoughts[b][-2:]) != layout.closing
        if count == cap or not open_.any():
            break
        # A finished sample writes over its own `<action>` position, which the action pass computes anew.
        position = lengths + torch.tensor([len(thought) - 1 for thought in thoughts])
        bounds = torch.stack([lengths, never, position + 1, position], 1)
        hidden = decoder.run(tokens[:, None], bounds)[:, 0]
    return [np.array(thought, np.int64) for thought in thoughts], _act(
        model, decoder, thoughts, lengths, close
    )


def _act(
    model: DeepThinkVLA, decoder: CachedDecoder, thoughts: list[list[int]], lengths: Tensor, close: bool
) -> Tensor:
    """The action block of every sample at its own place; shorter blocks are padded behind their `kv_len`."""
    layout = model.config.layout
    ending = list(layout.closing)
    tails = []
    for thought in thoughts:
        tail = thought[-1:]
        if close and thought[-2:] != ending:
            tail = tail + ending[1:] if tail == ending[:1] else tail + ending
        tails.append(tail)
    rest = layout.action_block()[1:].tolist()
    rows = max(len(tail) for tail in tails) + len(rest)
    ids = torch.tensor([tail + rest + [layout.pad] * (rows - len(tail) - len(rest)) for tail in tails])
    first = lengths + torch.tensor([len(thought) - 1 for thought in thoughts])
    offset = torch.tensor([len(tail) - 1 for tail in tails])
    bounds = torch.stack([lengths, first + offset, first + offset + 1 + len(rest), first], 1)
    hidden = decoder.run(ids, bounds)
    read = offset[:, None] + torch.arange(layout.slots)
    return model.action_logits(hidden[torch.arange(len(tails))[:, None], read])
