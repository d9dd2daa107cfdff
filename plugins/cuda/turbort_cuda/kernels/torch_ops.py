"""Reference functions on a GPU with what torch's kernels need there: aligned rows for attention, no TF32 in convolutions."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from turbort import ops
from turbort.ops.block_map import plain
from turbort.quant.qtensor import QTensor

ALIGNMENT = 16
"""Bytes: torch 2.11's fused attention answers NaN or faults where a row starts elsewhere, and refuses in float32."""


def aligned(x: Tensor) -> Tensor:
    """x, or a copy in rows that begin at multiples of 16 bytes."""
    steps = (x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:-1]))
    if x.stride(-1) == 1 and not any(step % ALIGNMENT for step in steps):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def attention(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    """`turbort.ops.attention`."""
    result: Tensor = ops.attention(*map(aligned, (q, k, v)), precision=precision)
    return result


def sla_attention(
    q: Tensor | QTensor, k: Tensor | QTensor, v: Tensor, proj_weight: Tensor, proj_bias: Tensor, **options: Any
) -> Tensor:
    """`turbort.ops.sla_attention`."""
    result: Tensor = ops.sla_attention(*(aligned(plain(t)) for t in (q, k, v)), proj_weight, proj_bias, **options)
    return result


def causal_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """`turbort.ops.causal_conv3d`."""
    with full_precision():
        result: Tensor = ops.causal_conv3d(x, weight, bias, **options)
    return result


def vae_upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`turbort.ops.vae_upsample`."""
    with full_precision():
        result: Tensor = ops.vae_upsample(x, weight, bias)
    return result


def full_precision() -> AbstractContextManager[Any]:
    """cuDNN rounds float32 convolutions to TF32 (error 3e-4) unless told not to; everything else stays as it is set."""
    cudnn: Any = torch.backends.cudnn
    scope: AbstractContextManager[Any] = cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )
    return scope
