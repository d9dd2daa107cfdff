"""The Wan transformer in plain torch for training: autograd, forward-mode tangents and torch.compile all go through it.

Same mathematics and parameter names as `turbort.models.wan_dit`; tests/unit/recipes checks that both give the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.tiny_shapes import fakequant
from recipes.tiny_shapes.common import Compiled
from recipes.tiny_shapes.config import SLA_BLOCK, Sizes


@dataclass(frozen=True)
class Mode:
    """How a forward is computed.

    plain: attention from matmuls, for tangents; topk: SLA with that ratio of key blocks, None for dense;
    linear: None, `w8a8` or `w4a8`; int8: QK product in int8.
    """

    plain: bool = False
    topk: float | None = None
    linear: str | None = None
    int8: bool = False


DENSE = Mode()


class Linear(nn.Linear):
    """nn.Linear whose forward can round its operands."""

    def run(self, x: Tensor, mode: Mode) -> Tensor:
        return fakequant.linear(x, self.weight, self.bias, mode.linear)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, L, H, d] with pairs (2i, 2i+1) turned by the angles [L, d/2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, mode: Mode) -> Tensor:
    """Softmax attention over all keys, all [B, H, L, d]."""
    if mode.int8:
        q, k = fakequant.int8_queries_keys(q, k, 128, 64, v.dtype)
    if mode.plain:
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def to_blocks(x: Tensor, rows: int) -> Tensor:
    """[..., L, d] to [..., blocks, rows, d], zeros after the end."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % rows)).unflatten(-2, (-1, rows))


def choose_blocks(q: Tensor, k: Tensor, topk: float) -> Tensor:
    """Numbers of the key blocks that each query block sees in the sparse branch, [B, H, query blocks, kept].

    Score of a (query block, key block) pair: mean query times mean of k minus its mean; each query block keeps
    max(1, floor(topk * blocks)) key blocks.
    """
    length = q.shape[-2]

    def pool(x: Tensor, rows: int) -> Tensor:
        sums = to_blocks(x, rows).sum(-2)
        starts = torch.arange(0, length, rows, device=x.device)
        return sums / (length - starts).clamp_max(rows)[:, None]

    q, k = q.detach().float(), k.detach().float()
    score = pool(q, SLA_BLOCK[0]) @ pool(k - k.mean(-2, keepdim=True), SLA_BLOCK[1]).transpose(-1, -2)
    keep = min(score.shape[-1], max(1, int(topk * score.shape[-1])))
    return score.topk(keep, dim=-1).indices


def sparse_branch(q: Tensor, k: Tensor, v: Tensor, mode: Mode) -> Tensor:
    """Softmax attention of each query block over the key blocks chosen for it, all [B, H, L, d].

    Chosen blocks are fetched by products with one-hot rows: exact, and their gradient needs no atomic additions.
    """
    assert mode.topk is not None
    length, rows = q.shape[-2], SLA_BLOCK[1]
    chosen = choose_blocks(q, k, mode.topk)
    if mode.int8:
        q, k = fakequant.int8_queries_keys(q, k, *SLA_BLOCK, v.dtype)
    pick = F.one_hot(chosen.flatten(-2), -(-length // rows)).to(v.dtype)  # [B, H, query blocks * kept, key blocks]

    def fetch(x: Tensor) -> Tensor:
        blocks = pick @ to_blocks(x, rows).flatten(-2)
        return blocks.unflatten(-1, (rows, -1)).unflatten(-3, chosen.shape[-2:]).flatten(-3, -2)

    beyond = (chosen[..., None] * rows + torch.arange(rows, device=q.device) >= length).flatten(-2)[..., None, :]
    score = (to_blocks(q, SLA_BLOCK[0]) @ fetch(k).transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    y = score.masked_fill(beyond, -torch.inf).softmax(-1).to(v.dtype) @ fetch(v)
    return y.flatten(-3, -2)[..., :length, :]


def linear_branch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """phi(q) (sum phi(k)^T v) / (1e-5 + phi(q) sum phi(k)), phi = softmax over d; all keys. float32."""
    fq, fk = q.float().softmax(-1), k.float().softmax(-1)
    total = fk.transpose(-1, -2) @ v.float()
    return fq @ total / (1e-5 + (fq * fk.sum(-2, keepdim=True)).sum(-1, keepdim=True))


class SelfAttention(nn.Module):
    def __init__(self, s: Sizes, sla: bool) -> None:
        super().__init__()
        self.heads = s.heads
        self.q, self.k, self.v, self.o = (Linear(s.dim, s.dim) for _ in range(4))
        self.norm_q, self.norm_k = Weight(s.dim), Weight(s.dim)
        if sla:
            proj = nn.Linear(s.dim // s.heads, s.dim // s.heads)
            nn.init.zeros_(proj.weight)
            nn.init.zeros_(proj.bias)
            self.attn_op = nn.ModuleDict({"local_attn": nn.ModuleDict({"proj_l": proj})})

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, mode: Mode) -> Tensor:
        v = self.v.run(h, mode)

        def heads(x: Tensor, norm: Weight) -> Tensor:
            x = rms_norm(x, norm.weight).unflatten(-1, (self.heads, -1))
            return rotate(x, cos, sin).to(v.dtype).transpose(1, 2)

        q, k = heads(self.q.run(h, mode), self.norm_q), heads(self.k.run(h, mode), self.norm_k)
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if mode.topk is None:
            y = attend(q, k, v, mode)
        else:
            y = sparse_branch(q, k, v, mode)
            proj = self.attn_op["local_attn"]["proj_l"]
            y = y + proj(linear_branch(q, k, v)).to(y.dtype)
        return self.o.run(y.transpose(1, 2).flatten(2), mode)


class CrossAttention(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads = s.heads
        self.q, self.k, self.v, self.o = (Linear(s.dim, s.dim) for _ in range(4))
        self.norm_q, self.norm_k = Weight(s.dim), Weight(s.dim)

    def forward(self, h: Tensor, text: Tensor, mode: Mode) -> Tensor:
        v = self.v.run(text, mode)
        q = rms_norm(self.q.run(h, mode), self.norm_q.weight).to(v.dtype)
        k = rms_norm(self.k.run(text, mode), self.norm_k.weight).to(v.dtype)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return self.o.run(attend(q, k, v, mode).transpose(1, 2).flatten(2), mode)


class Weight(nn.Module):
    """A scale, and a shift if asked for, under the names of a norm layer."""

    def __init__(self, dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None


class Block(nn.Module):
    def __init__(self, s: Sizes, sla: bool) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, s.dim) / s.dim**0.5)
        self.self_attn = SelfAttention(s, sla)
        self.norm3 = Weight(s.dim, bias=True)
        self.cross_attn = CrossAttention(s)
        self.ffn = nn.ModuleDict({"0": Linear(s.dim, s.ffn), "2": Linear(s.ffn, s.dim)})


def run_block(block: Block, x: Tensor, time: Tensor, text: Tensor, cos: Tensor, sin: Tensor, mode: Mode) -> Tensor:
    """One block; a free function, so that one compiled version serves every block of every network."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation + time)[:, :, None].unbind(1)
    x = x + gate1 * block.self_attn(modulate(x, shift1, scale1), cos, sin, mode)
    h = F.layer_norm(x, x.shape[-1:], block.norm3.weight, block.norm3.bias, 1e-6)
    x = x + block.cross_attn(h, text, mode)
    h = block.ffn["0"].run(modulate(x, shift2, scale2), mode)
    return x + gate2 * block.ffn["2"].run(F.gelu(h, approximate="tanh"), mode)


def run_head(head: Any, x: Tensor, embedding: Tensor) -> Tensor:
    shift, scale = (head.modulation + embedding[:, None])[:, :, None].unbind(1)
    return head.head(modulate(x, shift, scale))


class Head(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, s.dim) / s.dim**0.5)
        self.head = nn.Linear(s.dim, 4 * s.z)


class Dit(nn.Module):
    """Velocity of noisy latents x [B, z, T, H, W] at time t [B] in [0, 1], given text embeddings [B, L, text_dim]."""

    def __init__(self, s: Sizes, *, sla: bool = False) -> None:
        super().__init__()
        self.sizes = s
        self.patch_embedding = nn.Conv3d(s.z, s.dim, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Sequential(nn.Linear(s.text_dim, s.dim), nn.GELU("tanh"), nn.Linear(s.dim, s.dim))
        self.time_embedding = nn.Sequential(nn.Linear(s.freq_dim, s.dim), nn.SiLU(), nn.Linear(s.dim, s.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(s.dim, 6 * s.dim))
        self.blocks = nn.ModuleList([Block(s, sla) for _ in range(s.layers)])
        self.head = Head(s)
        cos, sin = rope(s)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.is_compiled, self.run_block, self.run_head = False, run_block, run_head
        for name, m in self.named_modules():
            if isinstance(m, nn.Linear | nn.Conv3d) and not name.endswith("proj_l"):
                nn.init.xavier_uniform_(m.weight.flatten(1))
                nn.init.zeros_(m.bias)
        for m in (*self.text_embedding, *self.time_embedding):
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mode: Mode = DENSE) -> Tensor:
        b, c, frames, height, width = x.shape
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.time_embedding(wave(t.float() * 1000.0, self.sizes.freq_dim))
            weight, bias = self.time_projection[1].weight, self.time_projection[1].bias
            if mode.linear:  # computed in float, but the shipped file stores it in int8
                weight = fakequant.int8_rows(weight, 1e-5)
            time = F.linear(F.silu(embedding), weight, bias).unflatten(-1, (6, -1))
        tokens = x.view(b, c, frames, height // 2, 2, width // 2, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(b, -1, 4 * c)
        h = F.linear(tokens, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias).float()
        context = self.text_embedding(text)
        # Tangents do not go through compiled code.
        each_block, head = (run_block, run_head) if mode.plain else (self.run_block, self.run_head)
        for block in self.blocks:
            h = each_block(block, h, time, context, self.cos, self.sin, mode)
        y = head(self.head, h, embedding)
        y = y.view(b, frames, height // 2, width // 2, 2, 2, c).permute(0, 6, 1, 2, 4, 3, 5)
        return y.reshape(x.shape).float()

    def compiled(self, on: bool) -> Dit:
        """Use compiled blocks and head from now on."""
        self.is_compiled = on
        if on:
            self.run_block, self.run_head = _compiled()
        return self


_COMPILED: list[Any] = []


def _compiled() -> tuple[Any, Any]:
    if not _COMPILED:
        _COMPILED.extend(Compiled(f) for f in (run_block, run_head))
    return _COMPILED[0], _COMPILED[1]


def wave(t: Tensor, dim: int) -> Tensor:
    """cos then sin of t * 10000^(-2i / dim), [B, dim]."""
    freq = torch.exp(torch.arange(dim // 2, device=t.device, dtype=torch.float32) * (-math.log(10000.0) * 2 / dim))
    angle = t[:, None] * freq
    return torch.cat((angle.cos(), angle.sin()), -1)


def rope(s: Sizes) -> tuple[Tensor, Tensor]:
    """cos and sin [L, head_dim / 2]: a third of the pairs each for rows and columns, the rest for time."""
    pairs = s.dim // s.heads // 2
    space = s.dim // s.heads // 6
    parts = []
    for axis, (length, count) in enumerate(zip(s.grid, (pairs - 2 * space, space, space), strict=True)):
        angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(count) / count)
        shape = [1, 1, 1, count]
        shape[axis] = length
        parts.append(angle.view(shape).expand(*s.grid, count))
    angle = torch.cat(parts, -1).flatten(0, 2)
    return angle.cos(), angle.sin()
