"""The model in torch: SigLIP vision tower, projector, Gemma decoder with hybrid attention.

Parameter names are those of transformers 4.48's PaliGemmaForConditionalGeneration, so published
checkpoints load as they are. Sizes come from the configuration alone. Shapes in suffixes: B batch,
S sequence, H hidden, N heads, K key/value heads, D head dimension.

Reference: DeepThinkVLA (arXiv 2511.15669), sft/modeling_deepthinkvla.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtvla.policy.token_layout import SLOT, visible
from training.model.attention import NOBODY, Early, attend, rope_tables, rotate
from training.model.config import ModelConfig, TextConfig, VisionConfig

# --------------------------------------------------------------------------------------- vision tower


class VisionEmbeddings(nn.Module):
    """Patches (behind the optional convolutional stem) and learned positions."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        channels, size = 3, c.patch_size
        stem: list[nn.Module] = []
        for out in c.stem:
            groups = max(1, out // 16)
            stem += [
                nn.Conv2d(channels, out, 3, 2, 1),
                nn.GroupNorm(groups, out),
                nn.GELU(approximate="tanh"),
            ]
            channels, size = out, size // 2
        if stem:
            self.stem = nn.Sequential(*stem)
        self.has_stem = bool(stem)
        self.patch_embedding = nn.Conv2d(channels, c.hidden_size, size, size)
        self.position_embedding = nn.Embedding(c.tokens, c.hidden_size)

    def forward(self, pixels_N3WW: Tensor) -> Tensor:
        x = self.stem(pixels_N3WW) if self.has_stem else pixels_N3WW
        return self.patch_embedding(x).flatten(2).transpose(1, 2) + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Full multi-head attention with biases."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.q_proj = nn.Linear(c.hidden_size, c.hidden_size)
        self.k_proj = nn.Linear(c.hidden_size, c.hidden_size)
        self.v_proj = nn.Linear(c.hidden_size, c.hidden_size)
        self.out_proj = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = (
            proj(x).view(b, s, self.heads, h // self.heads).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, h))


class VisionMLP(nn.Module):
    """Two layers with the tanh form of GELU."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.self_attn = VisionAttention(c)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = VisionMLP(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(c) for _ in range(c.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class VisionTransformer(nn.Module):
    """Embeddings, encoder, last norm."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(c)
        self.encoder = VisionEncoder(c)
        self.post_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(pixels)))


class VisionTower(nn.Module):
    """SigLIP without its pooling head: pixels [N, 3, W, W] in [-1, 1] to tokens [N, T, H_vision]."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(c)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision_model(pixels)


class Projector(nn.Module):
    """Vision width to decoder width."""

    def __init__(self, vision: VisionConfig, text: TextConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(vision.hidden_size, text.hidden_size)


# -------------------------------------------------------------------------------------------- decoder


class RMSNorm(nn.Module):
    """Gemma's: computed in float32, scaled by (1 + weight)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        f = x.float()
        f = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + self.eps)
        return (f * (1.0 + self.weight.float())).to(x.dtype)


class HybridAttention(nn.Module):
    """Grouped-query attention under a mask that the caller gives.

    `attend` may be replaced (export puts the custom ONNX node there); it receives
    q [B, N, S, D], k and v [B, K, S', D] and the mask argument as it came.
    """

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden_size, bias=False)

    def project(
        self, x: Tensor, cos: Tensor, sin: Tensor, asking: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, keys and values of these rows; queries of the last ones, `asking`, alone."""
        b, s, _ = x.shape
        c = self.c
        own = x if asking is None else asking
        q = self.q_proj(own).view(b, own.shape[1], c.heads, c.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, s, c.kv_heads, c.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, s, c.kv_heads, c.head_dim).transpose(1, 2)
        turn = (cos, sin) if asking is None else (cos[:, :, -own.shape[1] :], sin[:, :, -own.shape[1] :])
        return rotate(q, *turn), rotate(k, cos, sin), v

    def merge(self, out_BNSD: Tensor) -> Tensor:
        """Concatenates the heads and projects back."""
        b, _, s, _ = out_BNSD.shape
        return self.o_proj(out_BNSD.transpose(1, 2).reshape(b, s, -1))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, early: Early = NOBODY,
        *, late_only: bool = False,
    ) -> Tensor:  # fmt: skip
        if late_only:
            q, k, v = self.project(x, cos, sin, x[:, early.rows :])
            return self.merge(attend(q, k, v, mask if mask is None else mask[:, :, early.rows :]))
        q, k, v = self.project(x, cos, sin)
        return self.merge(attend(q, k, v, mask, early))


class GemmaMLP(nn.Module):
    """The gated feed-forward of Gemma."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class GemmaLayer(nn.Module):
    """A pre-norm decoder layer."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = HybridAttention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = GemmaMLP(c)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, early: Early = NOBODY,
        *, late_only: bool = False,
    ) -> Tensor:  # fmt: skip
        """Hidden states of all rows, or of those behind the early ones."""
        seen = self.self_attn(self.input_layernorm(x), cos, sin, mask, early, late_only=late_only)
        x = (x[:, early.rows :] if late_only else x) + seen
        return x + self.mlp(self.post_attention_layernorm(x))


class Gemma(nn.Module):
    """Token embedding, layers and last norm; the head is the embedding, transposed."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(GemmaLayer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


# ------------------------------------------------------------------------------------------ the model


class LanguageModel(nn.Module):
    """The name that checkpoints put in front of the decoder."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.model = Gemma(c)


class DeepThinkVLA(nn.Module):
    """Vision tower, projector and decoder; the output head is the transposed token embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = Projector(config.vision, config.text)
        self.language_model = LanguageModel(config.text)

    @property
    def decoder(self) -> Gemma:
        return self.language_model.model

    def forward(
        self, ids_BS: Tensor, pixels_N3WW: Tensor, positions_BS: Tensor, mask_B1SS: Tensor, rows_BS: Tensor
    ) -> Tensor:
        """Logits [R, V] of the chosen rows of whole sequences, in row-major order: a training pass.

        Args:
            ids_BS: token ids, `layout.SLOT` at action slots.
            pixels_N3WW: the samples' images in order, normalised.
            positions_BS: 1-based positions.
            mask_B1SS: True where a row may look.
            rows_BS: bool, the R rows to meet the head.
        """
        features = self.image_features(pixels_N3WW)
        features = features.reshape(len(ids_BS), -1, features.shape[-1])
        first = int(rows_BS.any(0).int().argmax())  # rows before it are prompt in all samples
        hidden = self.hidden(self.embed(ids_BS, features), positions_BS, mask_B1SS, first)
        return self.logits(hidden[rows_BS[:, first:]][None])[0]

    def image_features(self, pixels_N3WW: Tensor) -> Tensor:
        """Features [N, T, H] of normalised images, before the decoder's scaling by sqrt(H)."""
        tokens = self.vision_tower(pixels_N3WW)
        return self.multi_modal_projector.linear(tokens) / self.config.text.hidden_size**0.5

    def embed(self, ids_BS: Tensor, features_BFH: Tensor | None) -> Tensor:
        """Input embeddings [B, S, H] before scaling: text, image features at image ids, zeros at slots.

        Args:
            ids_BS: token ids; `layout.SLOT` (-1) marks an action slot.
            features_BFH: image features of each sample, in the order of its first F image ids; one that was
                thought stands behind them and is text. None without.
        """
        x = self.decoder.embed_tokens(ids_BS.clamp_min(0))
        x = x * (ids_BS != SLOT).unsqueeze(-1).to(x.dtype)
        if features_BFH is not None:
            is_image = ids_BS == self.config.layout.image
            number = is_image.cumsum(1) - 1
            pictured = (is_image & (number < features_BFH.shape[1])).unsqueeze(-1)
            index = number.clamp(0, features_BFH.shape[1] - 1).unsqueeze(-1).expand_as(x)
            x = torch.where(pictured, features_BFH.to(x.dtype).gather(1, index), x)
        return x

    def hidden(
        self, embeds_BSH: Tensor, positions_BS: Tensor, mask_B1SS: Tensor | None, first: int = 0
    ) -> Tensor:
        """Final hidden states [B, S - first, H] (after the last norm) of whole sequences.

        Args:
            embeds_BSH: unscaled input embeddings.
            positions_BS: 1-based positions.
            mask_B1SS: True where a row may look; None lets every row see every key.
            first: rows before it are not asked for: the last layer only takes keys and values of them.
                They may look at anything, but where they look at the beginning alone, no more is computed.
        """
        c = self.config.text
        x = embeds_BSH * torch.tensor(c.hidden_size**0.5, dtype=embeds_BSH.dtype, device=embeds_BSH.device)
        cos, sin = rope_tables(positions_BS, c.head_dim, c.rope_theta)
        early = NOBODY
        if first and mask_B1SS is not None:
            seen = mask_B1SS[:, :, :first].any(2).flatten(0, 1).any(0)
            early = Early(first, int(seen.nonzero().max()) + 1)
        last = len(self.decoder.layers) - 1
        for number, layer in enumerate(self.decoder.layers):
            x = layer(x, cos, sin, mask_B1SS, early, late_only=bool(early.rows) and number == last)
        x = x if early.rows == first else x[:, first:]
        return self.decoder.norm(x)

    def logits(self, hidden_BRH: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """Logits [B, R, end - begin] over a range of ids: the head is tied to the embedding."""
        return hidden_BRH @ self.decoder.embed_tokens.weight[begin:end].T

    def action_logits(self, hidden_BRH: Tensor) -> Tensor:
        """Logits [B, R, bins] over the action ids only."""
        layout = self.config.layout
        return self.logits(hidden_BRH, layout.action_begin, layout.action_end + 1)


def hybrid_mask(
    prefix_len_B: Tensor, action_start_B: Tensor, length_B: Tensor, size: int, *, reference_pads: bool = False
) -> Tensor:
    """The hybrid mask [B, 1, size, size] of right-padded whole sequences.

    Args:
        prefix_len_B: prompt lengths.
        action_start_B: index of the last thought token, `<action>`.
        length_B: real tokens of each row.
        size: padded length.
        reference_pads: let every row see the pads, as the reference does (docs/fidelity.md); they are
            hidden otherwise.
    """
    i = torch.arange(size, device=prefix_len_B.device)[None, :, None]
    j = torch.arange(size, device=prefix_len_B.device)[None, None, :]
    prefix, start, length = (x[:, None, None] for x in (prefix_len_B, action_start_B, length_B))
    mask: Tensor = visible(i, j, prefix, start, length)
    if reference_pads:
        mask = mask | (j >= length) | (i >= start)
    return mask[:, None]
