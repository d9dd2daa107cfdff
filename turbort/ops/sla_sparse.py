"""The sparse branch of SLA: every query block attends to its own list of key blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.ops._numeric import compute_dtype, no_autocast
from turbort.ops.attention_int8 import quantise_rows, quantise_v, smooth, softmax_pv

GATHER_BUDGET = 1 << 26
"""Gathered key (and value) elements held at once; bounds memory at long sequences."""

Branch = Callable[[slice, Tensor, "Tensor | None"], Tensor]
"""(query blocks, their rows of the block map, additive mask) -> [B*H, n, rows, d]."""


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, lut: Tensor, block: tuple[int, int], precision: str | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the key blocks named by `lut` [B, H, nq, kk]; [B, Lq, H, d] in, same out.

    The softmax is renormalised over the chosen keys; keys beyond the real length never count.
    """
    batch, length, heads, d = q.shape
    branch = _float_branch(q, k, v, block) if precision is None else _int8_branch(q, k, v, block, precision)
    chosen = lut.flatten(0, 1).to(torch.int64)
    mask = tail_mask(chosen, k.shape[1], block[1])
    step = max(1, GATHER_BUDGET // (batch * heads * chosen.shape[2] * block[1] * d))
    parts = []
    for start in range(0, chosen.shape[1], step):
        span = slice(start, start + step)
        parts.append(branch(span, chosen[:, span], None if mask is None else mask[:, span]))
    out = torch.cat(parts, dim=1).view(batch, heads, -1, d)[:, :, :length]
    return out.transpose(1, 2).to(q.dtype)


def _float_branch(q: Tensor, k: Tensor, v: Tensor, block: tuple[int, int]) -> Branch:
    dtype = compute_dtype(q)
    queries = to_blocks(q.to(dtype), block[0])
    keys, values = to_blocks(k.to(dtype), block[1]), to_blocks(v.to(dtype), block[1])

    def run(span: slice, chosen: Tensor, mask: Tensor | None) -> Tensor:
        bias = None if mask is None else mask.to(dtype).expand(-1, -1, block[0], -1)
        picked = gather(keys, chosen), gather(values, chosen)
        return F.scaled_dot_product_attention(queries[:, span], *picked, attn_mask=bias)

    return run


def _int8_branch(q: Tensor, k: Tensor, v: Tensor, block: tuple[int, int], precision: str) -> Branch:
    with no_autocast(q):
        queries, q_scale = _codes(q, block[0])
        keys, k_scale = _codes(smooth(k), block[1])
        values = to_blocks(quantise_v(v, precision), block[1])
    q_scale = q_scale * q.shape[-1] ** -0.5

    def run(span: slice, chosen: Tensor, mask: Tensor | None) -> Tensor:
        with no_autocast(q):
            scale = q_scale[:, span] * gather(k_scale, chosen).transpose(-1, -2)
            scores = (queries[:, span] @ gather(keys, chosen).transpose(-1, -2)) * scale
            scores = scores if mask is None else scores + mask
            return softmax_pv(scores, gather(values, chosen), precision, v.dtype)

    return run


def to_blocks(x: Tensor, size: int) -> Tensor:
    """[B, L, H, d] -> [B*H, n, size, d], zero-padded at the end."""
    heads_first = x.transpose(1, 2).flatten(0, 1)
    return torch.unflatten(F.pad(heads_first, (0, 0, 0, -x.shape[1] % size)), 1, (-1, size))


def _codes(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """int8 codes (in float32) and their scales, one per block of `size` rows, both as blocks."""
    codes, scales = quantise_rows(x.transpose(1, 2), size)
    return to_blocks(codes.transpose(1, 2), size), to_blocks(scales.transpose(1, 2), size)


def gather(tiles: Tensor, chosen: Tensor) -> Tensor:
    """tiles [B*H, nk, size, d] picked by chosen [B*H, n, kk] -> [B*H, n, kk*size, d]."""
    first = torch.arange(tiles.shape[0], device=tiles.device).view(-1, 1, 1) * tiles.shape[1]
    picked = tiles.flatten(0, 1).index_select(0, (chosen + first).flatten())
    return picked.view(*chosen.shape[:2], chosen.shape[2] * tiles.shape[2], tiles.shape[3])


def tail_mask(chosen: Tensor, keys: int, size: int) -> Tensor | None:
    """0 for real keys and -inf for the padding of the last block, float32 [B*H, n, 1, kk*size]; None without a tail."""
    if keys % size == 0:
        return None
    position = chosen.unsqueeze(-1) * size + torch.arange(size, device=chosen.device)
    padding = (position >= keys).flatten(-2).unsqueeze(-2)
    return torch.zeros(padding.shape, dtype=torch.float32, device=chosen.device).masked_fill(padding, float("-inf"))
