"""Attention, feed-forward, norms and the residual helper of the Wan transformer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from turbort import ops
from turbort.models.config import DitConfig, Sla
from turbort.models.layers import LayerNorm, Linear, RmsNorm, RopeNorm
from turbort.op import Slot, slot
from turbort.quant.schemes import quantize

Pending = tuple[Tensor, Tensor | None] | None
"""A branch output y and its gate that are not yet part of x; the next norm adds them."""


class Kept(NamedTuple):
    """An activation kept in int8: codes [..., d] and one float32 scale [..., 1] per row of d values (per token and head).

    The error of a row is at most max|row| / 254 per value. A tuple of tensors, so that it may be an input of a captured graph.
    """

    codes: Tensor
    scales: Tensor

    @staticmethod
    def of(x: Tensor) -> Kept:
        """x in int8."""
        found = quantize(x, "int8-token")
        return Kept(found.values, found.scales)


class CrossKV(NamedTuple):
    """Keys and values [B, L, heads, head_dim] of one block's cross-attention, and of its image branch if it has one."""

    key: Tensor | Kept
    value: Tensor | Kept
    image_key: Tensor | Kept | None = None
    image_value: Tensor | Kept | None = None

    def kept(self) -> CrossKV:
        """The same in int8: half the memory of 16 bits."""
        image = (Kept.of(part) if isinstance(part, Tensor) else part for part in self[2:])
        return CrossKV(*(Kept.of(part) if isinstance(part, Tensor) else part for part in self[:2]), *image)


def restored(x: Tensor | Kept, dtype: torch.dtype) -> Tensor:
    """The values of a kept activation in `dtype`; a plain tensor as it is."""
    return x if isinstance(x, Tensor) else (x.codes * x.scales).to(dtype)


@dataclass
class TokenGrid:
    """The grid of the forward under way, in tokens: what a kernel that works along time must know beside its arguments.

    `quantisers` are call sites beside the model's own, by the path of the site that they serve: they give activations scales
    shared along time, where a plan asks for it. `precision` is what they read.
    """

    frames: int = 1
    precision: str = "bf16"
    quantisers: dict[str, Slot] = field(default_factory=dict)


class Residual:
    """x + gate * linear(h), at once in the linear's epilogue or left for the next norm."""

    def __init__(self, fusion: str) -> None:
        self.in_linear = fusion == "linear"

    def __call__(self, x: Tensor, linear: nn.Module, h: Tensor, gate: Tensor | None) -> tuple[Tensor, Pending]:
        if self.in_linear:
            return linear(h, residual=x, gate=gate), None
        return x, (linear(h), gate)


class ModulatedNorm(nn.Module):
    """norm(x) * (1 + scale) + shift after adding what is pending; returns (x, h)."""

    def __init__(self, eps: float, *, role: str = "norm") -> None:
        super().__init__()
        self.eps = eps
        self.op = slot(ops.norm_modulate, role)
        self.fused = slot(ops.gated_residual_norm_modulate, role)

    def forward(self, x: Tensor, pending: Pending, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        if pending is None:
            return x, self.op(x, scale, shift, eps=self.eps)
        y, gate = pending
        added: tuple[Tensor, Tensor] = self.fused(x, y, ones_like_gate(scale, gate), scale, shift, eps=self.eps)
        return added


class TextNorm(LayerNorm):
    """LayerNorm with weight and bias after adding what is pending; returns (x, h)."""

    def __init__(self, dim: int, eps: float, *, role: str = "norm") -> None:
        super().__init__(dim, eps=eps, role=role)
        self.fused = slot(ops.gated_residual_norm_modulate, role)

    def forward(self, x: Tensor, pending: Pending) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if pending is None:
            return x, self.op(x, self.weight, self.bias, eps=self.eps)
        y, gate = pending
        size = (x.shape[0], 1, x.shape[2])
        scale, shift = (self.weight.float() - 1).expand(size), self.bias.float().expand(size)
        added: tuple[Tensor, Tensor] = self.fused(x, y, ones_like_gate(scale, gate), scale, shift, eps=self.eps)
        return added


class SelfAttention(nn.Module):
    """Attention over all video tokens, with normalised and rotated q and k; `o` is applied by the residual helper."""

    def __init__(self, config: DitConfig, sla: Sla | None) -> None:
        super().__init__()
        dim, heads = config.dim, config.heads
        self.heads = heads
        self.q = Linear(dim, dim, role="self.qkv")
        self.k = Linear(dim, dim, role="self.qkv")
        self.v = Linear(dim, dim, role="self.qkv")
        self.o = Linear(dim, dim, role="self.out")
        self.norm_q = RopeNorm(dim, heads, eps=config.eps)
        self.norm_k = RopeNorm(dim, heads, eps=config.eps)
        self.sla = sla
        if sla is None:
            self.attention = slot(ops.attention, "attn.self")
        else:
            self.attn_op = SlaBranch(config.head_dim)
            self.attention = slot(ops.sla_attention, "attn.self")

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q = self.norm_q(self.q(h), *rope)
        k = self.norm_k(self.k(h), *rope)
        v = self.v(h)
        v = v.view(v.shape[0], v.shape[1], self.heads, -1)
        if self.sla is None:
            out: Tensor = self.attention(q, k, v)
        else:
            proj = self.attn_op.local_attn["proj_l"]
            out = self.attention(q, k, v, proj.weight, proj.bias, topk=self.sla.topk, block=self.sla.block)
        return out.flatten(2)


class SlaBranch(nn.Module):
    """Holds the projection of SLA's linear branch under TurboDiffusion's name."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.local_attn = nn.ModuleDict({"proj_l": Projection(head_dim)})


class Projection(nn.Module):
    """A head_dim x head_dim matrix and bias, zero at first: SLA then starts as sparse attention alone."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(head_dim, head_dim))
        self.bias = nn.Parameter(torch.zeros(head_dim))


class CrossAttention(nn.Module):
    """Attention to the text, plus attention to the image tokens with the same queries in Wan 2.1 image-to-video."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q = Linear(dim, dim, role="cross.q")
        self.k = Linear(dim, dim, role="cross.kv")
        self.v = Linear(dim, dim, role="cross.kv")
        self.o = Linear(dim, dim, role="cross.out")
        self.norm_q = RmsNorm(dim, eps=config.eps)
        self.norm_k = RmsNorm(dim, eps=config.eps)
        self.attention = slot(ops.attention, "attn.cross")
        self.has_image = config.image_embed
        if self.has_image:
            self.k_img = Linear(dim, dim, role="cross.kv")
            self.v_img = Linear(dim, dim, role="cross.kv")
            self.norm_k_img = RmsNorm(dim, eps=config.eps)
            self.image_attention = slot(ops.attention, "attn.cross")

    def keys_values(self, text: Tensor, image: Tensor | None) -> CrossKV:
        """From embedded text [B, L, D] and image tokens [B, N, D]."""
        key, value = self._split(self.norm_k(self.k(text))), self._split(self.v(text))
        if image is None:
            return CrossKV(key, value)
        return CrossKV(key, value, self._split(self.norm_k_img(self.k_img(image))), self._split(self.v_img(image)))

    def forward(self, h: Tensor, text: CrossKV) -> Tensor:
        q = self._split(self.norm_q(self.q(h)))
        out: Tensor = self.attention(q, restored(text.key, q.dtype), restored(text.value, q.dtype))
        if text.image_key is not None and text.image_value is not None:
            image = restored(text.image_key, q.dtype), restored(text.image_value, q.dtype)
            out = out + self.image_attention(q, *image)
        return out.flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1)


class FeedForward(nn.ModuleDict):
    """gelu_tanh(h W0 + b0); the second linear, `out`, is applied by the residual helper."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__(
            {
                "0": Linear(dim, ffn_dim, role="ffn.in"),
                "2": Linear(ffn_dim, dim, role="ffn.out"),
            }
        )
        # A call of its own, not an epilogue: quantising a token needs the maximum over its whole row.
        self.gelu = slot(ops.gelu_quant, "ffn.gelu")

    @property
    def out(self) -> nn.Module:
        return self["2"]

    def forward(self, h: Tensor) -> Tensor:
        y: Tensor = self.gelu(self["0"](h))
        return y


def ones_like_gate(scale: Tensor, gate: Tensor | None) -> Tensor:
    """The gate, or ones in the shape of `scale` where the branch has none."""
    return torch.ones_like(scale) if gate is None else gate
