"""The two graphs of a bundle as torch modules, written for export: vision and decoder.

They share the checkpoint's modules and compute in the precision of its weights; pixels, features and logits
are float32 outside. The decoder differs from `training.model.deepthinkvla` in form only: it takes a static
key/value cache that it updates in place, the mask as four integers, and computes the heads at the rows it
is asked for, the head of words without the columns that can never be thought.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from model_export.onnx.hybrid_attention import hybrid_attention_node
from training.model.attention import rope_tables, rotate
from training.model.deepthinkvla import DeepThinkVLA, GemmaLayer, RMSNorm


class VisionGraph(nn.Module):
    """pixels [N, 3, S, S] -> features [N, T, H], the projector's output / sqrt(H)."""

    def __init__(self, model: DeepThinkVLA) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images to image features."""
        weight = self.model.decoder.embed_tokens.weight
        return self.model.image_features(pixels.to(weight.dtype)).float()


class DecoderGraph(nn.Module):
    """One decoder pass over any rows: prefill, a thinking step, the action block, or all in one.

    Args:
        model: the checkpoint.
        whole_head: score action ids as words too, as the reference does before it bans them; -inf else.
        keep_names: every weight stays a parameter of the checkpoint, packed by operations of the graph.
    """

    def __init__(self, model: DeepThinkVLA, *, whole_head: bool = False, keep_names: bool = False) -> None:
        super().__init__()
        self.model = model
        self.whole_head = whole_head
        self._packed = None if keep_names else [packed(layer) for layer in model.decoder.layers]

    def forward(
        self,
        ids: Tensor,
        features: Tensor,
        bounds: Tensor,
        write_index: Tensor,
        think_rows: Tensor,
        act_rows: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """See `model_export.onnx.export.DECODER_INPUTS` for shapes."""
        text, layout = self.model.config.text, self.model.config.layout
        x = self._embed(ids, features.to(self.model.decoder.embed_tokens.weight.dtype))
        x = x * text.hidden_size**0.5
        rows = torch.arange(ids.shape[1], dtype=torch.int32)
        positions = bounds[:, 3:4] + rows + 1
        cos, sin = rope_tables(positions, text.head_dim, text.rope_theta)
        new_keys, new_values = [], []
        heads = [text.heads, text.kv_heads]
        weights = self._packed or [packed(layer) for layer in self.model.decoder.layers]
        for layer, weight, key, value in zip(self.model.decoder.layers, weights, keys, values, strict=True):
            assert isinstance(layer, GemmaLayer)
            rows = linear(normalise(layer.input_layernorm, x), weight)
            turning, v = (
                rows.unflatten(-1, (-1, text.head_dim)).transpose(1, 2).split([sum(heads), heads[1]], 1)
            )
            q, k = rotate(turning, cos, sin).split(heads, 1)
            key, value = scatter(key, k, write_index), scatter(value, v, write_index)
            out = hybrid_attention_node(q, key, value, bounds, text.head_dim**-0.5)
            x = x + layer.self_attn.merge(out)
            x = x + layer.mlp(normalise(layer.post_attention_layernorm, x))
            new_keys.append(key)
            new_values.append(value)
        hidden = normalise(self.model.decoder.norm, x)
        head = self.model.decoder.embed_tokens.weight[layout.action_begin : layout.action_end + 1]
        think_logits = self._say(hidden.index_select(1, think_rows))
        action_logits = linear(hidden.index_select(1, act_rows), head).float()
        return think_logits, action_logits, new_keys, new_values

    def _say(self, hidden: Tensor) -> Tensor:
        """Logits [B, R, V] of words."""
        layout, embedding = self.model.config.layout, self.model.decoder.embed_tokens.weight
        if self.whole_head:
            return linear(hidden, embedding).float()
        never = hidden.new_full((1, 1, layout.bins), -torch.inf, dtype=torch.float32)
        parts = [
            linear(hidden, embedding[: layout.action_begin]).float(),
            never.expand(*hidden.shape[:2], -1),
        ]
        if layout.action_end + 1 < len(embedding):
            parts.append(linear(hidden, embedding[layout.action_end + 1 :]).float())
        return torch.cat(parts, -1)

    def _embed(self, ids: Tensor, features: Tensor) -> Tensor:
        """Embeddings of ids; zero at slots; the k-th image id of a row takes the k-th feature of that row.

        An image id beyond the features of this pass (the model may think one) is ordinary text.
        """
        hidden = self.model.config.text.hidden_size
        text = self.model.decoder.embed_tokens(ids.clamp_min(0)) * (ids >= 0).unsqueeze(-1)
        is_image = ids == self.model.config.layout.image
        order = torch.cumsum(is_image.long(), 1) - 1
        count = features.shape[1]
        placed = is_image & (order < count)
        index = torch.where(placed, order, count).unsqueeze(-1).expand(-1, -1, hidden)
        padded = pad(features, (0, 0, 0, 1))
        return torch.where(placed.unsqueeze(-1), padded.gather(1, index), text)


def packed(layer: nn.Module) -> Tensor:
    """The weights of queries, keys and values as one matrix."""
    assert isinstance(layer, GemmaLayer)
    attention = layer.self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    return torch.cat([part.weight.detach() for part in parts])


def normalise(norm: RMSNorm, x: Tensor) -> Tensor:
    """RMSNorm with a division, the form in which ONNX Runtime recognises and fuses it into one operator."""
    f = x.float()
    f = f / torch.sqrt(f.pow(2).mean(-1, keepdim=True) + norm.eps)
    return (f * (1.0 + norm.weight.float())).to(x.dtype)


def scatter(cache_BKCD: Tensor, rows_BKSD: Tensor, write_index_B: Tensor) -> Tensor:
    """Opset 24 TensorScatter: writes rows into the cache from each sample's index on."""
    node = torch.onnx.ops.symbolic(
        "::TensorScatter",
        (cache_BKCD, rows_BKSD, write_index_B),
        {"axis": 2, "mode": "linear"},
        dtype=cache_BKCD.dtype,
        shape=cache_BKCD.shape,
        version=24,
    )
    assert isinstance(node, Tensor)
    return node
