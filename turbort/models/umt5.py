"""The umT5 text encoder: token ids to embeddings.

T5 1.1 with a relative position bias of its own in every layer (umT5, arXiv 2304.09151). Parameter names are those of
`transformers`' UMT5EncoderModel, whose import alone takes longer than a small model needs to make a video.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbort.models.config import TextConfig
from turbort.models.layers import Linear, RmsNorm

BUCKETS = 32
FAR = 128
EPS = 1e-6
ROLE = "text"


class Umt5(nn.Module):
    """ids [B, L] and mask [B, L] (1 for real tokens) to [B, L, dim]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.shared = Table(config.vocab, config.dim)
        self.encoder = Stack(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.encoder(F.embedding(ids, self.shared.weight), mask)
        return y


class Table(nn.Module):
    """Rows of learned numbers."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width))


class Stack(nn.Module):
    """The blocks and the last norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.final_layer_norm = RmsNorm(config.dim, eps=EPS, role=ROLE)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        away = buckets(x.shape[1], x.device)
        hidden = torch.zeros(mask.shape, dtype=torch.float32, device=x.device).masked_fill(mask == 0, -torch.inf)
        for block in self.block:
            x = block(x, away, hidden)
        y: Tensor = self.final_layer_norm(x)
        return y


class Block(nn.Module):
    """Self-attention, then feed-forward, each on a norm of x and added to it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, x: Tensor, away: Tensor, hidden: Tensor) -> Tensor:
        attention, feed_forward = cast("Iterator[nn.Module]", self.layer)
        return bounded(feed_forward(bounded(attention(x, away, hidden))))


class AttentionLayer(nn.Module):
    """x + attention(norm(x))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.SelfAttention = Attention(config)
        self.layer_norm = RmsNorm(config.dim, eps=EPS, role=ROLE)

    def forward(self, x: Tensor, away: Tensor, hidden: Tensor) -> Tensor:
        y: Tensor = x + self.SelfAttention(self.layer_norm(x), away, hidden)
        return y


class Attention(nn.Module):
    """softmax(q k^T + bias of the distance) v, not scaled by the head size; softmax in float32."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.q = Linear(config.dim, inner, role=ROLE, bias=False)
        self.k = Linear(config.dim, inner, role=ROLE, bias=False)
        self.v = Linear(config.dim, inner, role=ROLE, bias=False)
        self.o = Linear(inner, config.dim, role=ROLE, bias=False)
        self.relative_attention_bias = Table(BUCKETS, config.heads)

    def forward(self, h: Tensor, away: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = self._split(self.q(h)), self._split(self.k(h)), self._split(self.v(h))
        bias = F.embedding(away, self.relative_attention_bias.weight).permute(2, 0, 1).float()
        scores = q.float() @ k.float().transpose(-1, -2) + bias + hidden[:, None, None, :]
        y: Tensor = self.o((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return y

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class FeedForwardLayer(nn.Module):
    """x + wo(gelu_tanh(wi_0 h) * wi_1 h), h = norm(x)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.DenseReluDense = nn.ModuleDict(
            {
                "wi_0": Linear(config.dim, config.ffn_dim, role=ROLE, bias=False, activation="gelu_tanh"),
                "wi_1": Linear(config.dim, config.ffn_dim, role=ROLE, bias=False),
                "wo": Linear(config.ffn_dim, config.dim, role=ROLE, bias=False),
            }
        )
        self.layer_norm = RmsNorm(config.dim, eps=EPS, role=ROLE)

    def forward(self, x: Tensor) -> Tensor:
        h, dense = self.layer_norm(x), self.DenseReluDense
        y: Tensor = dense["wo"](dense["wi_0"](h) * dense["wi_1"](h), residual=x)
        return y


def buckets(length: int, device: torch.device | str = "cpu") -> Tensor:
    """T5's bucket of each (query, key) distance, [L, L]: per direction 8 exact ones, then logarithmic ones up to 128."""
    place = torch.arange(length, device=device)
    gap = place[None, :] - place[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    away = gap.abs()
    far = exact + (torch.log(away.clamp_min(1).float() / exact) / math.log(FAR / exact) * (half - exact)).long()
    return (gap > 0).long() * half + torch.where(away < exact, away, far.clamp(max=half - 1))


def bounded(x: Tensor) -> Tensor:
    """float16 kept finite, as the activations of large T5 models need; other types as they are."""
    if x.dtype != torch.float16:
        return x
    most = torch.finfo(torch.float16).max - 1000
    return x.clamp(-most, most)
