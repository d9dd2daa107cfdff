"""Normalisations over torch-npu's fused ops: aclnnLayerNorm, aclnnRmsNorm and the interleaved rotary op."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor
from turbort_ascend.kernels.quant import emitted

npu: Any = torch.ops.npu


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """LayerNorm with weight and bias over the last axis; statistics in float32 inside the op."""
    y = F.layer_norm(x.to(torch.float32), x.shape[-1:], weight.to(torch.float32), bias.to(torch.float32), eps)
    return emitted(y.to(x.dtype), emit)


def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """LayerNorm times (1 + scale) plus shift.

    One modulation for all tokens of one video is the norm's own weight and bias: a single launch. Otherwise the norm
    runs plain and the modulation follows in float32.
    """
    wide = x.to(torch.float32)
    if scale.numel() == x.shape[-1] == shift.numel():
        gain, offset = 1 + scale.reshape(-1).to(torch.float32), shift.reshape(-1).to(torch.float32)
        y = F.layer_norm(wide, x.shape[-1:], gain, offset, eps)
    else:
        y = F.layer_norm(wide, x.shape[-1:], eps=eps) * (1 + scale.to(torch.float32)) + shift.to(torch.float32)
    return emitted(y.to(x.dtype), emit)


def gated_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, emit: str | None = None
) -> tuple[Tensor, Tensor | QTensor]:
    """(x + y * gate, norm_modulate of it); the norm reads the sum as stored."""
    x_new = torch.addcmul(x.to(torch.float32), y.to(torch.float32), gate.to(torch.float32)).to(x.dtype)
    return x_new, norm_modulate(x_new, scale, shift, eps=eps, emit=emit)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """RMSNorm over the last axis: `npu_rms_norm`, whose gamma has x's dtype."""
    return emitted(npu.npu_rms_norm(x.contiguous(), weight.to(x.dtype), eps)[0], emit)


def qk_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, heads: int, eps: float = 1e-6) -> Tensor:
    """RMSNorm over the full width, heads, then `npu_rotary_mul` in interleaved mode; x [B, L, D] -> [B, L, H, d].

    The op takes tables as long as the head, each entry twice, in x's dtype: [1, L, 1, d].
    """
    if x.shape[-1] % (2 * heads):
        raise InputError(f"width {x.shape[-1]} does not split into {heads} heads of even size")
    y = npu.npu_rms_norm(x.contiguous(), weight.to(x.dtype), eps)[0]
    tables = (t.to(x.dtype).repeat_interleave(2, dim=-1)[None, :, None] for t in (cos, sin))
    out: Tensor = npu.npu_rotary_mul(y.unflatten(-1, (heads, -1)), *tables, "interleave")
    return out
