"""`int8-block128`: one scale per 128x128 block, the scheme of TurboDiffusion's quantised checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
FLOOR = 1e-8


def quantize_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """q = saturate(round_half_even(x * 128 / amax)), s = amax / 128, amax = max(amax |block|, 1e-8).

    x [..., K] is seen as a matrix [M, K] of all leading axes flattened, so rows of different batch items
    can share a block. Tail blocks are smaller. Returns int8 [..., K] and float32 [ceil(M/128), ceil(K/128)].
    """
    rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
    m, k = rows.shape
    padded = F.pad(rows, (0, -k % BLOCK, 0, -m % BLOCK))
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    amax = blocks.abs().amax(dim=(1, 3)).clamp_min(FLOOR)
    q = (blocks * (BLOCK / amax)[:, None, :, None]).round().clamp(-128, 127).to(torch.int8)
    return q.view(padded.shape)[:m, :k].reshape(x.shape), amax / BLOCK


def expand_scales(scales: Tensor, rows: int, cols: int) -> Tensor:
    """One scale per element: [mb, kb] -> [rows, cols]."""
    return scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]


def dequantize_blocks(values: Tensor, scales: Tensor) -> Tensor:
    """x = q * s in float32, in the shape of `values`."""
    rows = values.reshape(-1, values.shape[-1])
    return (rows.to(torch.float32) * expand_scales(scales, *rows.shape)).view(values.shape)
