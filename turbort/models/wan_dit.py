"""The Wan diffusion transformer (Wan 2.1 and 2.2), text- and image-to-video: latents, time and text to velocity.

Per block, with (shift, scale, gate) from the time embedding and a learned offset:
    x <- x + gate1 * self_attention(norm(x) * (1 + scale1) + shift1)
    x <- x + cross_attention(norm3(x), text)
    x <- x + gate2 * ffn(norm(x) * (1 + scale2) + shift2)
Parameter names are those of Wan's own files. Source: Wan: Open and Advanced Large-Scale Video Generative Models
(arXiv 2503.20314).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbort import ops
from turbort.errors import InputError
from turbort.models.config import DitConfig, Sla
from turbort.models.dit_layers import (
    CrossAttention,
    CrossKV,
    FeedForward,
    ModulatedNorm,
    Pending,
    Residual,
    SelfAttention,
    TextNorm,
    TokenGrid,
)
from turbort.models.layers import Linear, sinusoid
from turbort.models.rope import rope_tables
from turbort.op import slot
from turbort.ops._numeric import no_autocast

Fusion = Literal["linear", "norm"]


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: DitConfig, attention: Sla | None) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.norm1 = ModulatedNorm(eps)
        self.self_attn = SelfAttention(config, attention)
        self.norm3 = TextNorm(dim, eps)
        self.cross_attn = CrossAttention(config)
        self.norm2 = ModulatedNorm(eps)
        self.ffn = FeedForward(dim, config.ffn_dim)

    def forward(
        self, x: Tensor, pending: Pending, time: Tensor, rope: tuple[Tensor, Tensor], text: CrossKV, add: Residual
    ) -> tuple[Tensor, Pending]:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + time).unbind(dim=-2)
        x, h = self.norm1(x, pending, scale1, shift1)
        x, pending = add(x, self.self_attn.o, self.self_attn(h, rope), gate1)
        x, h = self.norm3(x, pending)
        x, pending = add(x, self.cross_attn.o, self.cross_attn(h, text), None)
        x, h = self.norm2(x, pending, scale2, shift2)
        return add(x, self.ffn.out, self.ffn(h), gate2)

    def encode_text(self, text: Tensor, image: Tensor | None) -> CrossKV:
        """Keys and values of this block's cross-attention."""
        return self.cross_attn.keys_values(text, image)


class Head(nn.Module):
    """Modulated norm and the projection to patches of velocity."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        pt, ph, pw = config.patch
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.norm = ModulatedNorm(config.eps, role="head")
        self.head = Linear(config.dim, config.out_channels * pt * ph * pw, role="head")

    def forward(self, x: Tensor, pending: Pending, embedding: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + embedding.unsqueeze(-2)).unbind(dim=-2)
        _, h = self.norm(x, pending, scale, shift)
        y: Tensor = self.head(h)
        return y


class ImageEmbedding(nn.Module):
    """CLIP tokens [B, N, image_dim] to the model's width: norm, two linears with GELU, norm."""

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.ModuleDict(
            {
                "0": TextNorm(image_dim, 1e-5, role="embed"),
                "1": Linear(image_dim, image_dim, role="embed"),
                "3": Linear(image_dim, dim, role="embed"),
                "4": TextNorm(dim, 1e-5, role="embed"),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.proj["1"](self.proj["0"](x, None)[1]))
        y: Tensor = self.proj["4"](self.proj["3"](h), None)[1]
        return y


class WanDit(nn.Module):
    """x [B, C, T, H, W], t in [0, 1000] and text to velocity [B, C, T, H, W].

    Args:
        config: sizes.
        attention: SLA settings for self-attention; None for dense. Defaults to what the checkpoint was made for.

    `residual_fusion` picks where x + gate * y is computed: "linear" in the epilogue of the linear that makes y,
    "norm" together with the norm that follows.
    """

    # Parameters that stay in float32 whatever the rest of the model is stored in, by part of their name.
    fp32 = ("time_embedding", "time_projection", "modulation", "norm")

    def __init__(self, config: DitConfig, attention: Sla | None = None) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.residual_fusion: Fusion = "linear"
        attention = attention or config.sla
        patch_shape = (dim, config.in_channels, *config.patch)
        patch_size = config.in_channels * config.patch[0] * config.patch[1] * config.patch[2]
        self.patch_embedding = Linear(patch_size, dim, role="embed", shape=patch_shape)
        self.text_embedding = nn.ModuleDict(
            {
                "0": Linear(config.text_dim, dim, role="embed", activation="gelu_tanh"),
                "2": Linear(dim, dim, role="embed"),
            }
        )
        self.time_embedding = nn.ModuleDict(
            {"0": Linear(config.freq_dim, dim, role="time", fp32=True), "2": Linear(dim, dim, role="time", fp32=True)}
        )
        self.time_projection = nn.ModuleDict({"1": Linear(dim, 6 * dim, role="time", fp32=True)})
        self.blocks = nn.ModuleList([Block(config, attention) for _ in range(config.layers)])
        self.head = Head(config)
        self.img_emb = ImageEmbedding(config.image_dim, dim) if config.image_embed else None
        self.patchify = slot(ops.patchify, "embed")
        self.unpatchify = slot(ops.unpatchify, "head")
        self.tokens = TokenGrid()
        self._rope: dict[tuple[tuple[int, int, int], torch.device], tuple[Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Wan's starting point: normal(0.02) for text and time, a zero head so that the first velocity is zero."""
        if self.head.head.weight.device.type == "meta":
            return
        for name, parameter in self.named_parameters():
            if name.startswith(("text_embedding", "time_embedding")) and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | Sequence[CrossKV],
        *,
        image: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """One velocity.

        Args:
            x: noisy latents [B, C, T, H, W].
            t: time 0..1000, [B], or [B, L] per token.
            context: text embeddings [B, text_len, text_dim], or what `encode_text` returned for them.
            image: CLIP tokens [B, N, image_dim], only with `context` as a tensor.
            condition: further channels for the image-to-video task [B, in - C, T, H, W].

        Raises:
            InputError: the channels, the size or the kind of time do not fit the model.
        """
        if condition is not None:
            x = torch.cat([x, condition], dim=1)
        grid = self._grid(x, t)
        self.tokens.frames = grid[0]
        text = self.encode_text(context, image) if isinstance(context, Tensor) else context
        rope = self.rope(grid, x.device)
        embedding, time = self.embed_time(t)
        add = Residual(self.residual_fusion)
        h: Tensor = self.patch_embedding(self.patchify(x, patch=self.config.patch))
        pending: Pending = None
        for block, kv in zip(self._blocks(), text, strict=True):
            h, pending = block(h, pending, time, rope, kv, add)
        out: Tensor = self.head(h, pending, embedding)
        y: Tensor = self.unpatchify(out, grid=grid, patch=self.config.patch, channels=self.config.out_channels)
        return y

    def encode_text(self, context: Tensor, image: Tensor | None = None) -> list[CrossKV]:
        """Keys and values of every block's cross-attention; they depend on the prompt only, so one call serves all steps."""
        if (image is None) != (self.img_emb is None):
            raise InputError(
                "this model needs CLIP image tokens" if image is None else "this model takes no CLIP image tokens",
                fix="pass image=..." if image is None else "leave out image=",
            )
        text = self.text_embedding["2"](self.text_embedding["0"](context))
        tokens = None if self.img_emb is None else self.img_emb(image)
        return [block.encode_text(text, tokens) for block in self._blocks()]

    def embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """float32 embedding [B, 1 | L, D] and modulation [B, 1 | L, 6, D] of t [B] or [B, L].

        One sample at a time: a product with one row is another routine than one with several, and a video must not depend
        on what shares its batch.
        """
        if len(t) > 1:
            rows = [self.embed_time(row) for row in torch.split(t, 1)]
            return torch.cat([embedding for embedding, _ in rows]), torch.cat([time for _, time in rows])
        t = t[:, None] if t.ndim == 1 else t
        with no_autocast(t):
            wave = sinusoid(t, self.config.freq_dim)
            hidden = F.silu(self.time_embedding["0"](wave))
            embedding = self.time_embedding["2"](hidden)
            time = self.time_projection["1"](F.silu(embedding))
        return embedding, time.unflatten(-1, (6, self.config.dim))

    def rope(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin [L, head_dim / 2] in float32, kept per grid and device."""
        if (grid, device) not in self._rope:
            self._rope[grid, device] = rope_tables(grid, self.config.head_dim, device)
        return self._rope[grid, device]

    def _blocks(self) -> Iterator[Block]:
        yield from cast("Iterator[Block]", self.blocks)

    def _grid(self, x: Tensor, t: Tensor) -> tuple[int, int, int]:
        config = self.config
        channels, size = x.shape[1], tuple(x.shape[2:])
        if channels != config.in_channels or any(n % p for n, p in zip(size, config.patch, strict=True)):
            raise InputError(
                f"latents with {channels} channels and (T, H, W) = {size} do not fit the model",
                tried=[f"it takes {config.in_channels} channels and multiples of {config.patch}"],
                fix="for image-to-video pass the image channels as condition=" if channels < config.in_channels else None,
            )
        grid = (size[0] // config.patch[0], size[1] // config.patch[1], size[2] // config.patch[2])
        if t.ndim == 2 and t.shape[1] != grid[0] * grid[1] * grid[2]:
            raise InputError(f"{t.shape[1]} times for {grid[0] * grid[1] * grid[2]} tokens")
        return grid
