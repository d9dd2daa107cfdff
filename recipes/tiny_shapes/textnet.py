"""A small umT5 encoder in plain torch, with the parameter names of transformers' UMT5EncoderModel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.tiny_shapes.config import Sizes

BUCKETS = 32
FAR = 128


def buckets(length: int) -> Tensor:
    """T5's two-sided distance buckets of key minus query, int64 [L, L]: 8 exact ones a side, then logarithmic to 128."""
    place = torch.arange(length)
    gap = place[None, :] - place[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    away = gap.abs()
    log = exact + (torch.log(away.clamp_min(1) / exact) / math.log(FAR / exact) * (half - exact)).long()
    return (gap > 0).long() * half + torch.where(away < exact, away, log.clamp(max=half - 1))


def directions(heads: int) -> Tensor:
    """First values of the distance biases [BUCKETS, heads]: in turn the word before, the word after, all before, all after.

    Started at zero, an encoder of two layers never finds out which colour belongs to which shape: swapping the objects of a
    caption changes no embedding until a bias is large, and none grows while it changes nothing.
    """
    bucket = torch.arange(BUCKETS)
    after, gap = bucket >= BUCKETS // 2, bucket % (BUCKETS // 2)
    kinds = ((~after & (gap == 1)), (after & (gap == 1)), (~after & (gap > 0)), (after & (gap > 0)))
    return torch.stack([4.0 * kinds[h % len(kinds)] for h in range(heads)], 1)


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class SelfAttention(nn.Module):
    """Unscaled attention plus a learned bias per distance bucket."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.relative_attention_bias = nn.Embedding(BUCKETS, heads)

    def forward(self, x: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).float() for f in (self.q, self.k, self.v))
        score = q @ k.transpose(-1, -2) + self.relative_attention_bias(place).permute(2, 0, 1)
        weight = score.masked_fill(~mask[:, None, None, :], -1e9).softmax(-1)
        return self.o((weight @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, ffn: int) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(dim, ffn, bias=False) for _ in range(2))
        self.wo = nn.Linear(ffn, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class Layer(nn.Module):
    """A pre-norm residual branch under the name that transformers gives it."""

    def __init__(self, name: str, branch: nn.Module, dim: int) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, branch)
        self.layer_norm = RmsNorm(dim)

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        return x + getattr(self, self.name)(self.layer_norm(x), *args)


class TextBlock(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        attention = Layer("SelfAttention", SelfAttention(s.text_dim, s.text_heads), s.text_dim)
        feed = Layer("DenseReluDense", FeedForward(s.text_dim, s.text_ffn), s.text_dim)
        self.layer = nn.ModuleList([attention, feed])

    def forward(self, x: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, place, mask))


class TextEncoder(nn.Module):
    """Token ids [B, L] (0 pads) to embeddings [B, L, text_dim], zero where padded, as Wan feeds its transformer."""

    def __init__(self, s: Sizes, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.shared = nn.Embedding(vocab, s.text_dim)
        self.encoder = nn.ModuleDict(
            {
                "block": nn.ModuleList([TextBlock(s) for _ in range(s.text_layers)]),
                "final_layer_norm": RmsNorm(s.text_dim),
            }
        )
        self.register_buffer("place", buckets(s.text_len), persistent=False)
        for name, p in self.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                p.data.copy_(directions(p.shape[1]))
            elif name.endswith(("q.weight",)):
                nn.init.normal_(p, std=(s.text_dim * (s.text_dim // s.text_heads)) ** -0.5)
            elif "bias" in name:
                nn.init.zeros_(p)
            elif p.ndim == 2 and "shared" not in name:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != 0
        x = self.shared(ids)
        length = ids.shape[1]
        for block in self.encoder["block"]:
            x = block(x, self.place[:length, :length], mask)
        return self.encoder["final_layer_norm"](x) * mask[..., None]
