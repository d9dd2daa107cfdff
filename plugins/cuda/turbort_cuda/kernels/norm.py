"""Norms, modulation and gated residuals: each reads its inputs once and writes its outputs once.

One program holds one row in registers, in two parts whose widths are powers of two. Padding lanes of the second are set to zero
after the mean is taken off, so they never enter a statistic. Statistics are float32, the variance in two passes over registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import unknown
from turbort.quant.qtensor import QTensor
from turbort_cuda.kernels.common import rounded_to
from turbort_cuda.kernels.quant import EMITS, part_of, quantize, row_factor, store_part, warps_for, widths
from turbort_cuda.launch import on, rows_of, three

MODULATE, AFFINE, RMS, NOTHING = 0, 1, 2, 3


@triton.jit
def summed(
    x, y, gate, new, cols, D, stride_x, stride_y, at_gate, row, GATED: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Columns of a row of x, in float32; GATED: of x + y * gate, rounded to its dtype and stored in `new`."""
    here = cols < D
    v = part_of(x + row * stride_x, cols, here, MASKED)
    if GATED:
        added = part_of(y + row * stride_y, cols, here, MASKED)
        v = rounded_to(v + added * part_of(gate + at_gate, cols, here, MASKED), new.dtype.element_ty)
        if MASKED:
            tl.store(new + row * D + cols, v.to(new.dtype.element_ty), mask=here)
        else:
            tl.store(new + row * D + cols, v.to(new.dtype.element_ty))
    return v


@triton.jit
def affine(v, scale, shift, cols, D, KIND: tl.constexpr, MASKED: tl.constexpr):
    """v (1 + scale) + shift for KIND 0, v weight + bias for 1, v weight for 2; 0 past the row's end."""
    here = cols < D
    a = part_of(scale, cols, here, MASKED)
    if KIND == 2:
        return v * a
    b = part_of(shift, cols, here, MASKED)
    if KIND == 0:
        a = 1.0 + a
        if MASKED:
            a = tl.where(here, a, 0.0)
    return v * a + b


@triton.jit
def norm_kernel(
    x, y, gate, scale, shift, new, out, scales, D, length, eps, stride_x, stride_y, stride_gb, stride_gl, stride_sb, stride_sl,
    stride_hb, stride_hl,
    WIDE: tl.constexpr, REST: tl.constexpr, KIND: tl.constexpr, GATED: tl.constexpr, QUANT: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One row, in WIDE columns and at most REST more. KIND 0: LayerNorm, (1 + scale), shift; 1: LayerNorm, weight, bias;
    2: RMSNorm, weight; 3: none.

    GATED: x becomes x + y * gate first, rounded to its dtype and stored in `new`.
    """
    row = tl.program_id(0).to(tl.int64)
    batch = row // length
    place = row % length
    at_gate = batch * stride_gb + place * stride_gl
    first = tl.arange(0, WIDE)
    a = summed(x, y, gate, new, first, D, stride_x, stride_y, at_gate, row, GATED, False)
    if REST:
        second = WIDE + tl.arange(0, REST)
        b = summed(x, y, gate, new, second, D, stride_x, stride_y, at_gate, row, GATED, True)
    if KIND != 3:
        if KIND != 2:
            total = tl.sum(a, axis=0)
            if REST:
                total += tl.sum(b, axis=0)
                b = tl.where(second < D, b - total / D, 0.0)
            a = a - total / D
        squares = tl.sum(a * a, axis=0)
        if REST:
            squares += tl.sum(b * b, axis=0)
        root = tl.rsqrt(squares / D + eps)
        scale += batch * stride_sb + place * stride_sl
        shift += batch * stride_hb + place * stride_hl
        a = affine(a * root, scale, shift, first, D, KIND, False)
        if QUANT:
            a = rounded_to(a, x.dtype.element_ty)
        if REST:
            b = affine(b * root, scale, shift, second, D, KIND, True)
            if QUANT:
                b = rounded_to(b, x.dtype.element_ty)
        factor = 1.0
        if QUANT:
            amax = tl.max(tl.abs(a), axis=0)
            if REST:
                amax = tl.maximum(amax, tl.max(tl.abs(b), axis=0))
            factor = row_factor(scales + row, amax, FP8)
        store_part(out + row * D, a, factor, first, D, QUANT, FP8, False)
        if REST:
            store_part(out + row * D, b, factor, second, D, QUANT, FP8, True)


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
    wide, rest = widths(d)
    if m:
        with on(x.device):
            norm_kernel[(m,)](
                rows, added, g, a, b, new, out, scales, d, length, eps, rows.stride(0), added.stride(0),
                *strides_g, *strides_a, *strides_b,
                wide, rest, kind, y is not None, token, emit == "fp8-token", num_warps=warps_for(wide),
            )  # fmt: skip
    if token:
        return new, QTensor(str(emit), out, scales, x.dtype)
    return new, out if emit is None else quantize(out, emit=emit)
