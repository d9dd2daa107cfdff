"""`int4-group128`: symmetric int4, one scale per output row and 128 inputs; and nibble packing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 128
FLOOR = 1e-8
CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Candidate shares of a group's amax that the largest code stands for; int4 gains from clipping outliers."""


def fit_scales(groups: Tensor) -> Tensor:
    """The scale per group (last axis) with the least squared error over `CLIP_RATIOS`, first best wins.

    groups float32 [..., G] -> float32 [..., 1], strictly positive.
    """
    top = groups.abs().amax(dim=-1, keepdim=True).clamp_min(FLOOR) / 7.0
    best = top
    error = _error(groups, top)
    for ratio in CLIP_RATIOS[1:]:
        scale = top * ratio
        trial = _error(groups, scale)
        best = torch.where(trial < error, scale, best)
        error = torch.minimum(trial, error)
    return best


def _error(groups: Tensor, scale: Tensor) -> Tensor:
    return ((encode(groups, scale) * scale) - groups).square().sum(dim=-1, keepdim=True)


def encode(x: Tensor, scale: Tensor) -> Tensor:
    """clamp(round(x / s), -8, 7), still in float32."""
    return (x / scale).round().clamp(-8, 7)


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [..., K] float -> int8 codes in [-8, 7] [..., K], float32 scales [..., ceil(K/128)].

    The last group holds the remaining inputs when K is not a multiple of 128.
    """
    k = weight.shape[-1]
    padded = F.pad(weight.to(torch.float32), (0, -k % GROUP))
    groups = padded.view(*padded.shape[:-1], -1, GROUP)
    scales = fit_scales(groups)
    codes = encode(groups, scales).to(torch.int8).view(padded.shape)[..., :k]
    return codes.contiguous(), scales.squeeze(-1)


def dequantize_groups(values: Tensor, scales: Tensor) -> Tensor:
    """w = q * s in float32."""
    spread = scales.repeat_interleave(GROUP, -1)[..., : values.shape[-1]]
    return values.to(torch.float32) * spread


def pack_nibbles(codes: Tensor) -> Tensor:
    """int8 codes in [-8, 7], [..., K] -> uint8 [..., ceil(K/2)]; the even index sits in the low nibble.

    An odd K is padded with code 0.
    """
    even = F.pad(codes, (0, codes.shape[-1] % 2)).to(torch.int16) & 0xF
    return (even[..., 0::2] | (even[..., 1::2] << 4)).to(torch.uint8)


def unpack_nibbles(packed: Tensor, length: int) -> Tensor:
    """The inverse of `pack_nibbles`: uint8 [..., ceil(K/2)] -> int8 [..., length]."""
    wide = packed.to(torch.int16)
    pairs = torch.stack((wide & 0xF, wide >> 4), dim=-1).flatten(-2)
    return (((pairs + 8) & 0xF) - 8).to(torch.int8)[..., :length].contiguous()
