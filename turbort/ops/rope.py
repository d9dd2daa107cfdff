"""RMSNorm of queries or keys followed by rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.errors import InputError
from turbort.op import op
from turbort.ops._numeric import emitted, wide
from turbort.ops.norm import rms_scaled
from turbort.ops.samples_norm import qk_norm_rope_samples
from turbort.quant.qtensor import QTensor


@op(samples=qk_norm_rope_samples)
def qk_norm_rope(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, heads: int, eps: float = 1e-6, emit: str | None = None
) -> Tensor | QTensor:
    """RMSNorm over the full width, split into heads, rotate interleaved pairs (2i, 2i+1).

    y[2i] = x[2i] cos_i - x[2i+1] sin_i and y[2i+1] = x[2i] sin_i + x[2i+1] cos_i.
    x [B, L, D]; weight [D]; cos, sin float32 [L, d/2] or [B, L, d/2] with d = D / heads; returns [B, L, H, d] in
    x's dtype, or with `emit` `sums-64` or `sums-128` a QTensor of that and its sums over blocks of 64 or 128 tokens. Everything
    between input and output is float32.
    Raises InputError when D is not a multiple of 2 * heads.
    """
    width = x.shape[-1]
    if width % (2 * heads):
        raise InputError(f"width {width} does not split into {heads} heads of even size")
    y = torch.unflatten(rms_scaled(x, weight, eps), -1, (heads, width // heads))
    return emitted(rotate(y, cos, sin).to(x.dtype), emit)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (2i, 2i+1) of the last axis; x [B, L, H, d], cos and sin [(B,) L, d/2]."""
    c, s = wide(cos).unsqueeze(-2), wide(sin).unsqueeze(-2)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2)
