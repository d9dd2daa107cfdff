"""Sums over blocks of tokens: what sparse-linear attention chooses its blocks from, in one order on every device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sums_rows(scheme: str) -> int:
    """Tokens of a block of the scheme `sums-64` or `sums-128`."""
    return int(scheme.partition("-")[2])


def block_sums(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sums of x [B, L, H, d] over blocks of `size` tokens, [B, n, H, d], and the real length of each block, [n, 1, 1]."""
    length = x.shape[1]
    padded = torch.unflatten(F.pad(x, (0, 0, 0, 0, 0, -length % size)), 1, (-1, size))
    starts = torch.arange(padded.shape[1], device=x.device) * size
    counts = (length - starts).clamp_max(size).to(x.dtype)
    return tree_sum(padded, dim=2), counts.view(-1, 1, 1)


def tree_sum(x: Tensor, dim: int) -> Tensor:
    """Sum over `dim` by repeatedly adding the upper half to the lower half: one order on every device."""
    count = x.shape[dim]
    while count > 1:
        half = (count + 1) // 2
        lower, upper = x.narrow(dim, 0, half), x.narrow(dim, half, count - half)
        if count % 2:
            middle = lower.narrow(dim, half - 1, 1)
            lower = lower.narrow(dim, 0, half - 1)
            x = torch.cat((lower + upper, middle), dim=dim)
        else:
            x = lower + upper
        count = half
    return x.squeeze(dim)
