"""Device functions shared by the kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
"""Triton's names of the compute dtypes."""

FLOOR = tl.constexpr(1e-8)
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds a float32 to the nearest even integer


@triton.jit
def nearest_int8(x):
    """x, |x| < 2**22, to the nearest integer, halves to even, as int8 (its low byte).

    The sum with 1.5 * 2**23 has the integer in its low bits. Converting instructions run at a quarter of the rate of sums.
    """
    return (x + ROUND).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def rounded_to(y, KIND: tl.constexpr):
    """y rounded to KIND, halves to even, still float32; NaN stays NaN. For bfloat16 in integer arithmetic, for speed."""
    if tl.bfloat16 == KIND:
        bits = y.to(tl.uint32, bitcast=True)
        bits = (bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000
        return tl.where(y == y, bits.to(tl.float32, bitcast=True), y)
    else:
        return y.to(KIND).to(tl.float32)


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), as x / (1 + exp(-2u)), in base 2.

    1 / y is rsqrt(y)^2: one instruction of the special unit, where a division takes a dozen. y is 1 or more; infinity gives 0.
    """
    root = tl.rsqrt(1.0 + tl.exp2(x * (-2.302208198 - 0.1029432396 * x * x)))
    return x * root * root


@triton.jit
def to_codes(y, factor, FP8: tl.constexpr):
    """y * factor in int8, or in e4m3 within +-448."""
    if FP8:
        return tl.minimum(tl.maximum(y * factor, -448.0), 448.0).to(tl.float8e4nv)
    else:
        return nearest_int8(y * factor)


@triton.jit
def tile_of(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a tile when GROUP rows of tiles are walked together, so that they share columns in the L2 cache."""
    width = GROUP * tiles_n
    first = (tile // width) * GROUP
    rows = tl.minimum(tiles_m - first, GROUP)
    return first + (tile % width) % rows, (tile % width) // rows


@triton.jit
def columns(vector, cols, N):
    """vector[cols] in float32, zero past N, read once by the program.

    In the layout of a product every thread would read its own columns, 64 loads for a tile of 256. The sum over one element keeps
    the compiler from reading in that layout: it then spreads the values through shared memory.
    """
    one = tl.arange(0, 1)
    place = cols[:, None] + one[None, :]
    return tl.sum(tl.load(vector + place, mask=place < N, other=0.0).to(tl.float32), axis=1)


@triton.jit
def finish(
    y, rows, cols, inside, residual, gate, N, length, stride_r, stride_gb, stride_gl,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """The end of a linear on float32 values: GELU, gate, residual. GATE 1: one vector for all rows; 2: by batch and row."""
    if GELU:
        y = gelu_tanh(y)
    if RESIDUAL:
        if GATE == 1:
            y = y * columns(gate, cols, N)[None, :]
        if GATE == 2:
            place = (rows // length).to(tl.int64) * stride_gb + (rows % length).to(tl.int64) * stride_gl
            y = y * tl.load(gate + place[:, None] + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        start = rows.to(tl.int64)[:, None] * stride_r + cols[None, :]
        y = y + tl.load(residual + start, mask=inside, other=0.0).to(tl.float32)
    return y
