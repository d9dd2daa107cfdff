"""Norms, modulation and gated residuals: each reads its inputs once and writes its outputs once.

One program holds one row in registers, padded to a power of two. Padding lanes are set to zero after the mean is taken off, so
they never enter a statistic, whatever the width. Statistics are float32, the variance in two passes over registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import unknown
from turbort.quant.qtensor import QTensor
from turbort_cuda.kernels.common import quantised
from turbort_cuda.kernels.quant import EMITS, quantize, warps_for
from turbort_cuda.launch import on, rows_of, three

MODULATE, AFFINE, RMS, NOTHING = 0, 1, 2, 3


@triton.jit
def norm_kernel(
    x, y, gate, scale, shift, new, out, scales, D, length, eps, stride_x, stride_y, stride_gb, stride_gl, stride_sb, stride_sl,
    stride_hb, stride_hl,
    WIDTH: tl.constexpr, KIND: tl.constexpr, GATED: tl.constexpr, QUANT: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One row. KIND 0: LayerNorm, (1 + scale), shift; 1: LayerNorm, weight, bias; 2: RMSNorm, weight; 3: none.

    GATED: x becomes x + y * gate first, rounded to its dtype and stored in `new`.
    """
    row = tl.program_id(0).to(tl.int64)
    batch = row // length
    place = row % length
    cols = tl.arange(0, WIDTH)
    here = cols < D
    v = tl.load(x + row * stride_x + cols, mask=here, other=0.0).to(tl.float32)
    if GATED:
        added = tl.load(y + row * stride_y + cols, mask=here, other=0.0).to(tl.float32)
        g = tl.load(gate + batch * stride_gb + place * stride_gl + cols, mask=here, other=0.0).to(tl.float32)
        rounded_sum = (v + added * g).to(new.dtype.element_ty)
        tl.store(new + row * D + cols, rounded_sum, mask=here)
        v = rounded_sum.to(tl.float32)
    if KIND != 3:
        a = tl.load(scale + batch * stride_sb + place * stride_sl + cols, mask=here, other=0.0).to(tl.float32)
        if KIND == 2:
            v = v * tl.rsqrt(tl.sum(v * v, axis=0) / D + eps) * a
        else:
            v = tl.where(here, v - tl.sum(v, axis=0) / D, 0.0)
            v = v * tl.rsqrt(tl.sum(v * v, axis=0) / D + eps)
            b = tl.load(shift + batch * stride_hb + place * stride_hl + cols, mask=here, other=0.0).to(tl.float32)
            if KIND == 0:
                a = tl.where(here, 1.0 + a, 0.0)
            v = v * a + b
        if QUANT:
            v = v.to(x.dtype.element_ty).to(tl.float32)
            codes, s = quantised(v[None, :], 448.0 if FP8 else 127.0, FP8)
            tl.store(out + row * D + cols, tl.reshape(codes, (WIDTH,)), mask=here)
            tl.store(scales + row + tl.arange(0, 1), s)
        else:
            tl.store(out + row * D + cols, v.to(out.dtype.element_ty), mask=here)


def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """`turbort.ops.norm_modulate`."""
    return _run(x, scale, shift, MODULATE, eps, emit)[1]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """`turbort.ops.layer_norm`."""
    return _run(x, weight, bias, AFFINE, eps, emit)[1]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Tensor | QTensor:
    """`turbort.ops.rms_norm`."""
    return _run(x, weight, weight, RMS, eps, emit)[1]


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`turbort.ops.gated_residual`."""
    return _run(x, gate, gate, NOTHING, 0.0, None, y=y, gate=gate)[0]


def gated_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, emit: str | None = None
) -> tuple[Tensor, Tensor | QTensor]:
    """`turbort.ops.gated_residual_norm_modulate`: two reads and two writes a row instead of the four and three of its parts."""
    return _run(x, scale, shift, MODULATE, eps, emit, y=y, gate=gate)


def _run(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    kind: int,
    eps: float,
    emit: str | None,
    *,
    y: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor | QTensor]:
    if emit not in (None, *EMITS):
        raise unknown("quantisation scheme of an activation", emit, EMITS)
    token = emit in ("int8-token", "fp8-token")
    rows = rows_of(x)
    m, d = rows.shape
    batch, length = (x.shape[0], x.shape[1]) if x.dim() == 3 else (1, m)
    codes = {"int8-token": torch.int8, "fp8-token": torch.float8_e4m3fn}.get(emit or "", x.dtype)
    out = torch.empty(x.shape if kind != NOTHING else (0,), dtype=codes, device=x.device)
    new = torch.empty(x.shape if y is not None else (0,), dtype=x.dtype, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1) if token else (0,), dtype=torch.float32, device=x.device)
    a, *strides_a = three(scale, batch, length)
    b, *strides_b = three(shift, batch, length)
    added = rows if y is None else rows_of(y)
    g, *strides_g = three(a if gate is None else gate, batch, length)
    width = triton.next_power_of_2(d)
    if m:
        with on(x.device):
            norm_kernel[(m,)](
                rows, added, g, a, b, new, out, scales, d, length, eps, rows.stride(0), added.stride(0),
                *strides_g, *strides_a, *strides_b,
                width, kind, y is not None, token, emit == "fp8-token", num_warps=warps_for(width),
            )  # fmt: skip
    if token:
        return new, QTensor(str(emit), out, scales, x.dtype)
    return new, out if emit is None else quantize(out, emit=emit)
