"""Normalisations, modulation and gated residuals. All statistics in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.op import op
from turbort.ops._numeric import emitted, no_autocast, wide
from turbort.ops.samples_norm import (
    gated_residual_norm_modulate_samples,
    gated_residual_samples,
    layer_norm_samples,
    norm_modulate_samples,
    rms_norm_samples,
)
from turbort.quant.qtensor import QTensor


@op(samples=layer_norm_samples)
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis; var is the biased two-pass variance.

    x [..., D]; weight, bias [D]; returns x's shape and dtype, or a QTensor in scheme `emit`.
    """
    y = normalised(x, eps) * wide(weight) + wide(bias)
    return emitted(y.to(x.dtype), emit)


@op(samples=norm_modulate_samples)
def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """LayerNorm without affine, times (1 + scale), plus shift (adaLN).

    x [B, L, D]; scale, shift float32 [B, 1, D] or [B, L, D]; returns x's shape and dtype, or a QTensor.
    """
    y = normalised(x, eps) * (1 + wide(scale)) + wide(shift)
    return emitted(y.to(x.dtype), emit)


@op(samples=rms_norm_samples)
def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    x [..., D]; weight [D]; returns x's shape and dtype, or a QTensor in scheme `emit`.
    """
    return emitted(rms_scaled(x, weight, eps).to(x.dtype), emit)


@op(samples=gated_residual_samples)
def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate in float32, rounded once to x's dtype. x, y [B, L, D]; gate [B, 1, D] or [B, L, D]."""
    return (wide(x) + wide(y) * wide(gate)).to(x.dtype)


@op(samples=gated_residual_norm_modulate_samples)
def gated_residual_norm_modulate(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    eps: float = 1e-6,
    emit: str | None = None,
) -> tuple[Tensor, Tensor | QTensor]:
    """(x_new, h) with x_new = gated_residual(x, y, gate) and h = norm_modulate(x_new, scale, shift).

    h is computed from x_new as stored (rounded to x's dtype), so that fused and unfused runs agree.
    """
    x_new: Tensor = gated_residual(x, y, gate)
    return x_new, norm_modulate(x_new, scale, shift, eps=eps, emit=emit)


def normalised(x: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last axis, in float32.

    Two passes on purpose: E[x^2] - E[x]^2 loses every digit when the mean is large against the spread.
    """
    with no_autocast(x):
        return F.layer_norm(wide(x), x.shape[-1:], eps=eps)


def rms_scaled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32."""
    full = wide(x)
    return full * torch.rsqrt(full.square().mean(dim=-1, keepdim=True) + eps) * wide(weight)
