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
def rounded(x):
    """x to the nearest integer, halves to even, for |x| < 2**22; still float32."""
    return (x + ROUND) - ROUND


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), written as x sigmoid(2u)."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-2.0 * u))


@triton.jit
def quantised(y, TOP: tl.constexpr, FP8: tl.constexpr):
    """Codes and scale of each row of y [R, C] float32: scale = max(amax, 1e-8) / TOP (127 for int8, 448 for e4m3)."""
    amax = tl.maximum(tl.max(tl.abs(y), axis=1), FLOOR)
    scaled = y * (TOP / amax)[:, None]
    if FP8:
        codes = tl.minimum(tl.maximum(scaled, -448.0), 448.0).to(tl.float8e4nv)
    else:
        codes = rounded(scaled).to(tl.int8)
    return codes, amax / TOP


@triton.jit
def tile_of(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a tile when GROUP rows of tiles are walked together, so that they share columns in the L2 cache."""
    width = GROUP * tiles_n
    first = (tile // width) * GROUP
    rows = tl.minimum(tiles_m - first, GROUP)
    return first + (tile % width) % rows, (tile % width) // rows


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
            y = y * tl.load(gate + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
        if GATE == 2:
            place = (rows // length) * stride_gb + (rows % length) * stride_gl
            y = y * tl.load(gate + place[:, None] + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        start = rows.to(tl.int64)[:, None] * stride_r + cols[None, :]
        y = y + tl.load(residual + start, mask=inside, other=0.0).to(tl.float32)
    return y
