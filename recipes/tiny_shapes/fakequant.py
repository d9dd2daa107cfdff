"""Rounding to the runtime's 8- and 4-bit formats with straight-through gradients, in forms that torch.compile can fuse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Value of `rounded`, gradient of x."""
    return x + (rounded - x).detach() if torch.is_grad_enabled() else rounded


def int8_rows(x: Tensor, floor: float = 1e-8) -> Tensor:
    """int8 with one scale per row (last axis): the runtime's `int8-token`, and `int8-channel` with floor 1e-5. float32."""
    x = x.float()
    scale = x.detach().abs().amax(-1, keepdim=True).clamp_min(floor) / 127.0
    return straight_through(x, (x.detach() / scale).round().clamp(-128, 127) * scale)


def int4_groups(w: Tensor, group: int = 128) -> Tensor:
    """int4 with one scale per row and 128 inputs, the best of eight clipping ratios: the runtime's `int4-group128`."""
    w = w.float()
    groups = F.pad(w.detach(), (0, -w.shape[-1] % group)).unflatten(-1, (-1, group))
    top = groups.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 7.0
    best, least = groups, torch.full_like(top, torch.inf)
    for step in range(8):
        scale = top * (1.0 - 0.05 * step)
        trial = (groups / scale).round().clamp(-8, 7) * scale
        error = (trial - groups).square().sum(-1, keepdim=True)
        best = torch.where(error < least, trial, best)
        least = torch.minimum(error, least)
    return straight_through(w, best.flatten(-2)[..., : w.shape[-1]])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str | None) -> Tensor:
    """x W^T + b with both operands rounded as `precision` (None, `w8a8`, `w4a8`) says."""
    if precision is None:
        return F.linear(x, weight, bias)
    rounded = int4_groups(weight) if precision == "w4a8" else int8_rows(weight, 1e-5)
    return F.linear(int8_rows(x), rounded, bias)


def int8_blocks(x: Tensor, rows: int) -> Tensor:
    """int8 with one scale per `rows` tokens: x [B, H, L, d] -> the same shape, float32."""
    x = x.float()
    length = x.shape[-2]
    blocks = F.pad(x.detach(), (0, 0, 0, -length % rows)).unflatten(-2, (-1, rows))
    scale = blocks.abs().amax((-1, -2), keepdim=True).clamp_min(1e-8) / 127.0
    rounded = ((blocks / scale).round().clamp(-127, 127) * scale).flatten(-3, -2)[..., :length, :]
    return straight_through(x, rounded)


def int8_queries_keys(q: Tensor, k: Tensor, q_rows: int, k_rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries, and keys less their mean, as the int8 product sees them; all [B, H, L, d]."""
    k = k.float()
    return int8_blocks(q, q_rows).to(dtype), int8_blocks(k - k.mean(-2, keepdim=True), k_rows).to(dtype)
