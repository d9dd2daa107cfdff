"""Quantising activations: rows (`int8-token`, `fp8-token`), 128 x 128 blocks (`int8-block128`), and GELU before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError, unknown
from turbort.quant.qtensor import QTensor
from turbort_cuda.kernels.common import FLOOR, gelu_tanh, quantised, rounded
from turbort_cuda.launch import on, rows_of

EMITS = ("int8-token", "fp8-token", "int8-block128")
BLOCK = 128


@triton.jit
def rows_kernel(
    x, out, scales, D, stride, WIDTH: tl.constexpr, GELU: tl.constexpr, QUANT: tl.constexpr, FP8: tl.constexpr
):  # fmt: skip
    """One row: optional GELU rounded to x's dtype, then codes and scale, or the values themselves without QUANT."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    here = cols < D
    y = tl.load(x + row * stride + cols, mask=here, other=0.0).to(tl.float32)
    if GELU:
        y = gelu_tanh(y).to(x.dtype.element_ty).to(tl.float32)
    if QUANT:
        codes, scale = quantised(y[None, :], 448.0 if FP8 else 127.0, FP8)
        tl.store(out + row * D + cols, tl.reshape(codes, (WIDTH,)), mask=here)
        tl.store(scales + row + tl.arange(0, 1), scale)
    else:
        tl.store(out + row * D + cols, y.to(out.dtype.element_ty), mask=here)


@triton.jit
def blocks_kernel(x, out, scales, M, D, stride, tiles, EDGE: tl.constexpr, GELU: tl.constexpr):
    """One 128 x 128 block: q = saturate(round(x * 128 / amax)), s = amax / 128."""
    rows = tl.program_id(0) * EDGE + tl.arange(0, EDGE)
    cols = tl.program_id(1) * EDGE + tl.arange(0, EDGE)
    inside = (rows < M)[:, None] & (cols < D)[None, :]
    y = tl.load(x + rows.to(tl.int64)[:, None] * stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    if GELU:
        y = gelu_tanh(y).to(x.dtype.element_ty).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(y)), FLOOR)
    codes = tl.minimum(tl.maximum(rounded(y * (EDGE / amax)), -128.0), 127.0).to(tl.int8)
    tl.store(out + rows.to(tl.int64)[:, None] * D + cols[None, :], codes, mask=inside)
    tl.store(scales + tl.program_id(0) * tiles + tl.program_id(1), amax / EDGE)


def warps_for(width: int) -> int:
    """Warps of a program that holds `width` float32 values: about 16 values a thread."""
    return max(1, min(16, width // 512))


def quantize(x: Tensor, *, emit: str) -> QTensor:
    """`turbort.ops.quantize`: x in scheme `emit`. Raises InputError for a scheme that is not an activation's."""
    result = _passed(x, emit, gelu=False)
    assert isinstance(result, QTensor)
    return result


def gelu_quant(x: Tensor, *, emit: str | None = None) -> Tensor | QTensor:
    """`turbort.ops.gelu_quant`: tanh GELU rounded to x's dtype, then quantised to `emit`."""
    return _passed(x, emit, gelu=True)


def _passed(x: Tensor, emit: str | None, *, gelu: bool) -> Tensor | QTensor:
    if emit not in (None, *EMITS):
        raise unknown("quantisation scheme of an activation", emit, EMITS)
    if emit == "int8-block128":
        return _blocks(x, gelu)
    rows = rows_of(x)
    m, d = rows.shape
    kind = {None: x.dtype, "int8-token": torch.int8, "fp8-token": torch.float8_e4m3fn}[emit]
    out = torch.empty(x.shape, dtype=kind, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device) if emit else out
    width = triton.next_power_of_2(d)
    if m:
        with on(x.device):
            rows_kernel[(m,)](
                rows, out, scales, d, rows.stride(0), width, gelu, emit is not None, emit == "fp8-token",
                num_warps=warps_for(width),
            )  # fmt: skip
    return out if emit is None else QTensor(emit, out, scales, x.dtype)


def _blocks(x: Tensor, gelu: bool) -> QTensor:
    rows = rows_of(x)
    m, d = rows.shape
    grid = triton.cdiv(m, BLOCK), triton.cdiv(d, BLOCK)
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(grid, dtype=torch.float32, device=x.device)
    with on(x.device):
        blocks_kernel[grid](rows, out, scales, m, d, rows.stride(0), grid[1], BLOCK, gelu, num_warps=8)
    return QTensor("int8-block128", out, scales, x.dtype)


def activations(x: Tensor | QTensor, scheme: str) -> QTensor:
    """`x` in `scheme`, quantised here unless its producer did so; InputError when it comes in another scheme."""
    qx = x if isinstance(x, QTensor) else quantize(x, emit=scheme)
    if qx.scheme != scheme:
        raise InputError(
            f"this weight needs {scheme} activations, not {qx.scheme}",
            fix="make the plan again with `turbort plan`: producer and weight disagree",
        )
    return qx
