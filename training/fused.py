"""One sequence of a small policy on a CPU, with few operations per pass: for rollouts.

A small model's pass on a CPU is mostly the overhead of its operations. Here projections that read the same
rows are one product, the norm is one operation, keys and values are kept once per query head, and a pass
whose rows see everything has no mask; oneDNN multiplies. The same numbers as `training.cached` up to the
rounding of sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtvla.policy.layout import Bounds, allowed
from training.cached import TorchBackend
from training.model import DeepThinkVLA, GemmaLayer, rope_tables
from training.onednn import linear, use_onednn


class _Layer(NamedTuple):
    norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class FusedBackend(TorchBackend):
    """The torch model as a `dtvla.policy.backends.Backend`; `refresh` after the weights have changed.

    Args:
        model: in eval mode, float32, on the CPU; oneDNN multiplies in its linear layers from now on.
        cache_length: positions of the cache.
    """

    def __init__(self, model: DeepThinkVLA, cache_length: int) -> None:
        use_onednn(model)  # for the vision tower; the decoder's layers are taken apart
        self._model, self._length = model, cache_length
        text = model.config.text
        shape = (1, text.heads, cache_length, text.head_dim)
        self._caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(text.layers)]
        positions = torch.arange(1, cache_length + 1)[None]
        cos, sin = rope_tables(positions, text.head_dim, text.rope_theta)
        self._cos, self._sin = (x.reshape(cache_length, 1, -1) for x in (cos, sin))
        self.refresh()

    @property
    def cache_length(self) -> int:
        """How many positions the cache holds."""
        return self._length

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the model's weights as they are now."""
        self._layers = []
        for layer in self._model.decoder.layers:
            assert isinstance(layer, GemmaLayer)
            attention, mlp = layer.self_attn, layer.mlp
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            self._layers.append(
                _Layer(
                    1 + layer.input_layernorm.weight,
                    torch.cat([part.weight for part in parts]),
                    attention.o_proj.weight.detach(),
                    1 + layer.post_attention_layernorm.weight,
                    torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                    mlp.down_proj.weight.detach(),
                )
            )
        self._norm = 1 + self._model.decoder.norm.weight

    def sibling(self) -> FusedBackend:
        """See `Backend.sibling`."""
        return FusedBackend(self._model, self._length)

    def clear(self) -> None:
        """Zeroes the cache."""
        for key, value in self._caches:
            key.zero_()
            value.zero_()

    @torch.inference_mode()
    def _hidden(self, ids_1S: Tensor, bounds: Bounds, features_1FH: Tensor | None, first: int) -> Tensor:
        text = self._model.config.text
        x_SH = self._model.embed(ids_1S, features_1FH)[0] * text.hidden_size**0.5
        size, heads, kv_heads, dim = len(x_SH), text.heads, text.kv_heads, text.head_dim
        start, keys = bounds.q_start, bounds.kv_len
        end = start + size
        cos, sin = self._cos[start:end], self._sin[start:end]
        bias = _bias(bounds, size, keys)
        x, eps, width = x_SH, text.rms_norm_eps, (text.hidden_size,)
        last = len(self._layers) - 1
        for number, (layer, (key, value)) in enumerate(zip(self._layers, self._caches, strict=True)):
            rows = linear(F.rms_norm(x, width, layer.norm, eps), layer.qkv)
            rows = rows.view(size, heads + 2 * kv_heads, dim)
            a, b = rows[:, : heads + kv_heads].chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1).transpose(0, 1)
            groups = (kv_heads, heads // kv_heads, -1, -1)
            key[0, :, start:end].view(*groups[:2], size, dim).copy_(turned[heads:, None].expand(groups))
            plain = rows[:, heads + kv_heads :].transpose(0, 1)
            value[0, :, start:end].view(*groups[:2], size, dim).copy_(plain[:, None].expand(groups))
            asking = first if number == last else 0  # behind the last layer nobody reads the other rows
            x = x[asking:]
            seen = F.scaled_dot_product_attention(
                turned[None, :heads, asking:],
                key[:, :, :keys],
                value[:, :, :keys],
                attn_mask=None if bias is None else bias[asking:],
            )
            x = x + linear(seen[0].transpose(0, 1).reshape(len(x), heads * dim), layer.out)
            gate, up = linear(F.rms_norm(x, width, layer.mlp_norm, eps), layer.gate_up).chunk(2, -1)
            x = x + linear(F.gelu(gate, approximate="tanh") * up, layer.down)
        return F.rms_norm(x, width, self._norm, eps)[None]


def _bias(bounds: Bounds, rows: int, keys: int) -> Tensor | None:
    """What is added to the scores [rows, keys] of a pass; None where every row sees every key."""
    visible = allowed(bounds, rows, keys)
    if visible.all():
        return None
    return torch.from_numpy(np.where(visible, np.float32(0.0), np.float32(-np.inf)))
