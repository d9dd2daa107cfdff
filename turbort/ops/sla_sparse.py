"""The sparse branch of SLA: every query block attends to its own list of key blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.ops._numeric import no_autocast
from turbort.ops.attention_int8 import quantise_rows, quantise_v, smooth, softmax_pv

GATHER_BUDGET = 1 << 26
"""Gathered key (and value) elements held at once; bounds memory at long sequences."""


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, lut: Tensor, block: tuple[int, int], precision: str | None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the key blocks named by `lut` [B, H, nq, kk]; [B, Lq, H, d] in, same out.

    The softmax is renormalised over the chosen keys; keys beyond the real length never count.
    """
    batch, length, heads, d = q.shape
    chosen = lut.shape[-1]
    if precision is None:
        scales = None
        tiles = [to_blocks(q, block[0]), to_blocks(k, block[1]), to_blocks(v, block[1])]
    else:
        with no_autocast(q):
            q_codes, q_scale = _codes(q, block[0])
            k_codes, k_scale = _codes(smooth(k), block[1])
            scales = (q_scale * d**-0.5, k_scale)
            tiles = [q_codes, k_codes, to_blocks(quantise_v(v, precision), block[1])]
    bias = tail_bias(lut, k.shape[1], block[1], torch.float32 if precision else q.dtype)
    step = max(1, GATHER_BUDGET // (batch * heads * chosen * block[1] * d))
    parts = []
    for start in range(0, lut.shape[2], step):
        span = slice(start, start + step)
        keys = _gather(tiles[1], lut[:, :, span])
        values = _gather(tiles[2], lut[:, :, span])
        mask = None if bias is None else bias[:, span]
        if scales is None:
            parts.append(F.scaled_dot_product_attention(tiles[0][:, span], keys, values, attn_mask=mask))
        else:
            assert precision is not None
            with no_autocast(q):
                scale = scales[0][:, span] * _gather(scales[1], lut[:, :, span]).transpose(-1, -2)
                scores = (tiles[0][:, span] @ keys.transpose(-1, -2)) * scale
                scores = scores if mask is None else scores + mask
                parts.append(softmax_pv(scores, values, precision, v.dtype).to(q.dtype))
    out = torch.cat(parts, dim=1).view(batch, heads, -1, d)[:, :, :length]
    return out.transpose(1, 2)


def to_blocks(x: Tensor, size: int) -> Tensor:
    """[B, L, H, d] -> [B*H, n, size, d], zero-padded at the end."""
    heads_first = x.transpose(1, 2).flatten(0, 1)
    return F.pad(heads_first, (0, 0, 0, -x.shape[1] % size)).unflatten(1, (-1, size))


def _codes(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """int8 codes (in float32) and their scales, one per block of `size` rows, both as blocks."""
    codes, scales = quantise_rows(x.transpose(1, 2), size)
    return to_blocks(codes.transpose(1, 2), size), to_blocks(scales.transpose(1, 2), size)


def _gather(tiles: Tensor, lut: Tensor) -> Tensor:
    """tiles [B*H, nk, size, d] by lut [B, H, n, kk] -> [B*H, n, kk*size, d]."""
    flat = lut.flatten(0, 1).to(torch.int64)
    first = torch.arange(tiles.shape[0], device=tiles.device).view(-1, 1, 1) * tiles.shape[1]
    picked = tiles.flatten(0, 1).index_select(0, (flat + first).flatten())
    return picked.view(*flat.shape[:2], flat.shape[2] * tiles.shape[2], tiles.shape[3])


def tail_bias(lut: Tensor, keys: int, size: int, dtype: torch.dtype) -> Tensor | None:
    """0 for real keys and -inf for the padding of the last block, [B*H, nq, 1, kk*size]; None without a tail."""
    if keys % size == 0:
        return None
    position = lut.flatten(0, 1).to(torch.int64).unsqueeze(-1) * size + torch.arange(size, device=lut.device)
    padding = (position >= keys).flatten(-2).unsqueeze(-2)
    return torch.zeros(padding.shape, dtype=dtype, device=lut.device).masked_fill(padding, float("-inf"))
