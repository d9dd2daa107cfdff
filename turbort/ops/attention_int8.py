"""INT8 attention with SageAttention's semantics, for any torch device.

k is smoothed (its mean over tokens subtracted, which softmax cannot see), q and k are int8 with one scale per
block of rows (amax/127), scores are exact int32 sums, softmax is float32, and P V runs in 16 bits or e4m3.
Source: SageAttention (arXiv 2410.02367) and SageAttention2 (arXiv 2411.10958).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.errors import unknown
from turbort.ops._numeric import no_autocast, wide
from turbort.precision import ATTENTION
from turbort.quant.fp8 import E4M3_MAX, to_e4m3

Q_ROWS = 128
K_ROWS = 64
FLOOR = 1e-8
SCORE_BUDGET = 1 << 26


def int8_attention(q: Tensor, k: Tensor, v: Tensor, precision: str) -> Tensor:
    """Dense attention at `int8` or `int8-fp8`; shapes as in `turbort.ops.attention.attention`."""
    check_precision(precision)
    if q.is_meta:
        return torch.empty_like(q)
    with no_autocast(q):
        qs, ks, vs = (t.transpose(1, 2) for t in (q, smooth(k), quantise_v(v, precision)))
        q_codes, q_scales = quantise_rows(qs, Q_ROWS)
        k_codes, k_scales = quantise_rows(ks, K_ROWS)
        k_codes, k_scales = k_codes.transpose(-1, -2), k_scales.transpose(-1, -2)
        per_row = q.shape[0] * q.shape[2] * k.shape[1]
        rows = max(1, SCORE_BUDGET // per_row)
        parts = []
        for codes, scales in zip(torch.split(q_codes, rows, 2), torch.split(q_scales, rows, 2), strict=True):
            scores = (codes @ k_codes) * (scales * k_scales * q.shape[-1] ** -0.5)
            parts.append(softmax_pv(scores, vs, precision, v.dtype).to(q.dtype))
    return torch.cat(parts, dim=2).transpose(1, 2)


def check_precision(precision: str) -> None:
    """Raise InputError unless `precision` names an INT8 attention contract."""
    if precision not in ATTENTION:
        raise unknown("attention precision", precision, ATTENTION)


def smooth(k: Tensor) -> Tensor:
    """k minus its mean over tokens, float32; k [B, L, H, d]."""
    full = wide(k)
    return full - full.mean(dim=1, keepdim=True)


def quantise_rows(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """int8 codes (held in float32, for exact float matmuls) and a scale per row, shared by blocks of `rows`.

    x [..., L, d] -> codes [..., L, d], scales [..., L, 1]; scale = max(amax |block|, 1e-8) / 127.
    """
    length = x.shape[-2]
    padded = F.pad(x.to(torch.float32), (0, 0, 0, -length % rows))
    blocks = torch.unflatten(padded, -2, (-1, rows))
    scales = blocks.abs().amax(dim=(-1, -2), keepdim=True).clamp_min(FLOOR) / 127.0
    codes = (blocks / scales).round().clamp(-127, 127).flatten(-3, -2)[..., :length, :]
    return codes, scales.expand(*blocks.shape[:-1], 1).flatten(-3, -2)[..., :length, :]


def quantise_v(v: Tensor, precision: str) -> Tensor:
    """v as the P V product sees it, float32: e4m3 with one scale per channel for `int8-fp8`, unchanged otherwise."""
    full = v.to(torch.float32)
    if precision != "int8-fp8":
        return full
    scale = full.abs().amax(dim=1, keepdim=True).clamp_min(FLOOR) / E4M3_MAX
    return to_e4m3(full / scale).to(torch.float32) * scale


def softmax_pv(scores: Tensor, v: Tensor, precision: str, storage: torch.dtype) -> Tensor:
    """softmax(scores) v with P rounded before the product, as flash kernels do: float32 [..., rows, d].

    P = exp(s - max) is rounded to the storage dtype of v (`int8`) or to e4m3 after scaling by 448
    (`int8-fp8`); the row sum is taken from the unrounded values and divides at the end.
    """
    p = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    total = p.sum(dim=-1, keepdim=True)
    if precision == "int8-fp8":
        p = to_e4m3(p * E4M3_MAX).to(torch.float32) / E4M3_MAX
    elif storage.itemsize == 2:
        p = p.to(storage).to(torch.float32)
    return (p @ v) / total
