"""`w4a8` and `w4a16`: weights in int4 with one scale per output and 128 inputs, activations in 8 or 16 bits.

    w4a8:  y[m, n] = sx[m] * sum over groups g of int32(x_g w_g^T) * s[n, g]      (float32 sum in K order)
    w4a16: y = x W^T with W = cast(code * s) in x's dtype, float32 sums

Two codes share a byte: within each group, byte j holds code j in its low half and code j + 64 in its high half. A byte tile then
unpacks into two tiles of neighbouring inputs with two shifts and no shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor
from turbort_cuda.configs import TINY_ROWS
from turbort_cuda.kernels.common import finish, tile_of
from turbort_cuda.kernels.epilogue import epilogue, unpack_input
from turbort_cuda.kernels.quant import activations
from turbort_cuda.launch import capability, multiprocessors, on, rows_of
from turbort_cuda.tuning import pick

GROUP = 128
SCHEME = "int4-group128"


@triton.jit
def int4_kernel(
    x, w, out, x_scale, w_scale, bias, residual, gate, length, stride_r, stride_gb, stride_gl,
    M, N, K, stride_x, groups,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TILES: tl.constexpr, STAGES: tl.constexpr, INT: tl.constexpr,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Persistent; x [M, K] in int8 (INT) or 16 bits, w uint8 [N, groups * 64], w_scale float32 [N, groups]."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    half = tl.arange(0, 64)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        pid_m, pid_n = tile_of(tile, tiles_m, tiles_n, TILES)
        rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
        safe = tl.where(cols < N, cols, 0)
        left = x + tl.where(rows < M, rows, 0).to(tl.int64)[:, None] * stride_x + half[None, :]
        right = w + safe.to(tl.int64)[:, None] * (groups * 64) + half[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for g in tl.range(0, groups, num_stages=STAGES):
            pair = tl.load(right + g * 64).to(tl.int8, bitcast=True)
            low = ((pair << 4).to(tl.int8)) >> 4
            high = pair >> 4
            first = g * 128 + half
            a = tl.load(left + g * 128, mask=(first < K)[None, :], other=0)
            b = tl.load(left + g * 128 + 64, mask=(first + 64 < K)[None, :], other=0)
            scale = tl.load(w_scale + safe * groups + g)
            if INT:
                total = tl.dot(a, low.T, out_dtype=tl.int32)
                total = tl.dot(b, high.T, total, out_dtype=tl.int32)
                acc += total.to(tl.float32) * scale[None, :]
            else:
                acc = tl.dot(a, (low.to(tl.float32) * scale[:, None]).to(a.dtype).T, acc)
                acc = tl.dot(b, (high.to(tl.float32) * scale[:, None]).to(a.dtype).T, acc)
        y = acc
        if INT:
            y = y * tl.load(x_scale + rows, mask=rows < M, other=0.0)[:, None]
        if HAS_BIAS:
            y += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
        inside = (rows < M)[:, None] & (cols < N)[None, :]
        y = finish(y, rows, cols, inside, residual, gate, N, length, stride_r, stride_gb, stride_gl, GELU, RESIDUAL, GATE)
        tl.store(out + rows.to(tl.int64)[:, None] * N + cols[None, :], y.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Int4Weight:
    """Bytes uint8 [N, groups * 64] in this file's order, float32 scales [N, groups], and K."""

    packed: Tensor
    scales: Tensor
    inputs: int


def pack(weight: QTensor, bias: Tensor | None = None) -> Int4Weight:
    """Pack an `int4-group128` weight two codes to a byte; raises InputError for another scheme."""
    if weight.scheme != SCHEME:
        raise InputError(f"the int4 linear packs {SCHEME} weights, not {weight.scheme}")
    n, k = weight.values.shape
    groups = F.pad(weight.values, (0, -k % GROUP)).view(n, -1, 2, GROUP // 2).to(torch.int16) & 0xF
    packed = (groups[:, :, 0] | (groups[:, :, 1] << 4)).to(torch.uint8).view(n, -1).contiguous()
    return Int4Weight(packed, weight.scales.contiguous(), k)


def linear_w4a8(
    x: Tensor | QTensor,
    weight: Int4Weight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`turbort.ops.linear` at w4a8 for a weight from `pack`."""
    qx = activations(x, "int8-token")
    return _launch(qx, qx.scales, weight, bias, activation, residual, gate)


def linear_w4a16(
    x: Tensor,
    weight: Int4Weight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`turbort.ops.linear` at w4a16 for a weight from `pack`; x in bfloat16 or float16."""
    return _launch(x, None, weight, bias, activation, residual, gate)


def _launch(
    x: Tensor | QTensor,
    scales: Tensor | None,
    weight: Int4Weight,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    gate: Tensor | None,
) -> Tensor:
    values, dtype, shape = unpack_input(x)
    rows = rows_of(values)
    (m, k), (n, groups) = rows.shape, weight.scales.shape
    device = rows.device
    end = epilogue(shape, n, dtype, device, bias, activation, residual, gate)
    if m == 0:
        return end.finished()
    chosen = pick("linear_int4", capability(device), "tiny" if m <= TINY_ROWS else "wide", f"{n}x{k}")
    block = chosen["BLOCK_M"], chosen["BLOCK_N"]
    tiles = triton.cdiv(m, block[0]) * triton.cdiv(n, block[1])
    with on(device):
        int4_kernel[(min(tiles, 2 * multiprocessors(device)),)](
            rows, weight.packed, end.out, end.out if scales is None else scales, weight.scales, *end.pointers,
            m, n, k, rows.stride(0), groups,
            *block, chosen["GROUP"], chosen["stages"], scales is not None, **end.flags,
            num_warps=chosen["warps"], num_stages=chosen["stages"],
        )  # fmt: skip
    return end.finished()
