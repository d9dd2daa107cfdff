"""Quantising activations: rows (`int8-token`, `fp8-token`), 128 x 128 blocks (`int8-block128`), and GELU before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError, unknown
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import TIME_SCHEMES
from turbort_cuda.kernels.common import FLOOR, gelu_tanh, nearest_int8, rounded_to, to_codes
from turbort_cuda.launch import on, rows_of

EMITS = ("int8-token", "fp8-token", "int8-block128")
BLOCK = 128


@triton.jit
def part_of(pointer, cols, here, MASKED: tl.constexpr):
    """Columns of a row in float32; 0 past its end."""
    if MASKED:
        return tl.load(pointer + cols, mask=here, other=0.0).to(tl.float32)
    else:
        return tl.load(pointer + cols).to(tl.float32)


@triton.jit
def row_factor(scale, amax, FP8: tl.constexpr):
    """Stores a row's scale, max(amax, 1e-8) / 127 (448 for e4m3), and returns what its values are multiplied by."""
    top: tl.constexpr = 448.0 if FP8 else 127.0
    amax = tl.maximum(amax, FLOOR)
    tl.store(scale, amax / top)
    return top / amax


@triton.jit
def store_part(pointer, y, factor, cols, D, QUANT: tl.constexpr, FP8: tl.constexpr, MASKED: tl.constexpr):
    """Columns of a row: codes of y * factor with QUANT, otherwise y."""
    if QUANT:
        y = to_codes(y, factor, FP8)
    else:
        y = y.to(pointer.dtype.element_ty)
    if MASKED:
        tl.store(pointer + cols, y, mask=cols < D)
    else:
        tl.store(pointer + cols, y)


@triton.jit
def rows_kernel(
    x, out, scales, D, stride, WIDE: tl.constexpr, REST: tl.constexpr, GELU: tl.constexpr, QUANT: tl.constexpr, FP8: tl.constexpr
):  # fmt: skip
    """One row: optional GELU rounded to x's dtype, then codes and scale, or the values themselves without QUANT."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.arange(0, WIDE)
    a = part_of(x + row * stride, first, first < D, False)
    if REST:
        second = WIDE + tl.arange(0, REST)
        b = part_of(x + row * stride, second, second < D, True)
    if GELU:
        a = gelu_tanh(a)
        if QUANT:
            a = rounded_to(a, x.dtype.element_ty)
        if REST:
            b = gelu_tanh(b)
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


@triton.jit
def places_kernel(
    x, out, scales, D, frames, places, stride, WIDE: tl.constexpr, REST: tl.constexpr, FP8: tl.constexpr
):  # fmt: skip
    """One place of a frame: the maximum over its rows in all frames, then their codes with one scale."""
    start = tl.program_id(1).to(tl.int64) * frames * places + tl.program_id(0)
    first = tl.arange(0, WIDE)
    amax = 0.0
    row = start
    for _ in range(frames):
        amax = tl.maximum(amax, tl.max(tl.abs(part_of(x + row * stride, first, first < D, False)), axis=0))
        if REST:
            second = WIDE + tl.arange(0, REST)
            amax = tl.maximum(amax, tl.max(tl.abs(part_of(x + row * stride, second, second < D, True)), axis=0))
        row += places
    row = start
    for _ in range(frames):
        factor = row_factor(scales + row, amax, FP8)
        store_part(out + row * D, part_of(x + row * stride, first, first < D, False), factor, first, D, True, FP8, False)
        if REST:
            second = WIDE + tl.arange(0, REST)
            store_part(out + row * D, part_of(x + row * stride, second, second < D, True), factor, second, D, True, FP8, True)
        row += places


@triton.jit
def blocks_kernel(x, out, scales, M, D, stride, tiles, EDGE: tl.constexpr, GELU: tl.constexpr):
    """One 128 x 128 block: q = saturate(round(x * 128 / amax)), s = amax / 128."""
    rows = tl.program_id(0) * EDGE + tl.arange(0, EDGE)
    cols = tl.program_id(1) * EDGE + tl.arange(0, EDGE)
    inside = (rows < M)[:, None] & (cols < D)[None, :]
    y = tl.load(x + rows.to(tl.int64)[:, None] * stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    if GELU:
        y = rounded_to(gelu_tanh(y), x.dtype.element_ty)
    amax = tl.maximum(tl.max(tl.abs(y)), FLOOR)
    codes = nearest_int8(tl.minimum(tl.maximum(y * (EDGE / amax), -128.0), 127.0))
    tl.store(out + rows.to(tl.int64)[:, None] * D + cols[None, :], codes, mask=inside)
    tl.store(scales + tl.program_id(0) * tiles + tl.program_id(1), amax / EDGE)


def widths(d: int) -> tuple[int, int]:
    """Powers of two that cover d columns: the largest that fits, and one for the rest or 0. 8960 takes 8192 + 1024, not 16384."""
    wide = 1 << (d.bit_length() - 1)
    return wide, triton.next_power_of_2(d - wide) if d > wide else 0


def warps_for(wide: int) -> int:
    """Warps of a program that holds rows of at least this many values: 32 to 64 a thread, and few barriers between warps."""
    return max(1, min(16, wide // 1024))


def quantize(x: Tensor, *, emit: str) -> QTensor:
    """`turbort.ops.quantize`: x in scheme `emit`. Raises InputError for a scheme that is not an activation's."""
    result = _passed(x, emit, gelu=False)
    assert isinstance(result, QTensor)
    return result


def gelu_quant(x: Tensor, *, emit: str | None = None) -> Tensor | QTensor:
    """`turbort.ops.gelu_quant`: tanh GELU rounded to x's dtype, then quantised to `emit`."""
    return _passed(x, emit, gelu=True)


def quantize_time(x: Tensor, *, emit: str, frames: int) -> QTensor:
    """`turbort.ops.quantize_time`: x [B, frames * P, K] in a token scheme whose scales are shared along time.

    One program for a place: it reads its rows for their maximum and again for their codes, mostly from the cache. Raises
    InputError for another scheme, or tokens that are no multiple of `frames`.
    """
    if emit not in TIME_SCHEMES:
        raise unknown("quantisation scheme with scales shared along time", emit, TIME_SCHEMES)
    if x.ndim != 3 or x.shape[1] % frames:
        raise InputError(f"scales cannot be shared over {frames} frames: x is {'x'.join(map(str, x.shape))}")
    rows, d = rows_of(x), x.shape[-1]
    places = x.shape[1] // frames
    out = torch.empty(x.shape, dtype=torch.int8 if emit == "int8-token" else torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    wide, rest = widths(d)
    if places and x.shape[0]:
        with on(x.device):
            places_kernel[(places, x.shape[0])](
                rows, out, scales, d, frames, places, rows.stride(0), wide, rest, emit == "fp8-token", num_warps=warps_for(wide)
            )
    return QTensor(emit, out, scales, x.dtype)


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
    wide, rest = widths(d)
    if m:
        with on(x.device):
            rows_kernel[(m,)](
                rows, out, scales, d, rows.stride(0), wide, rest, gelu, emit is not None, emit == "fp8-token",
                num_warps=warps_for(wide),
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
