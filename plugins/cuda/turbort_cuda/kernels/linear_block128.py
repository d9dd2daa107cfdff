"""`w8a8-block128`: one scale per 128 x 128 block of x and of the weight, TurboDiffusion's scheme.

    y = cast(sum over K tiles t of int32(x_t w_t^T) * (sx[m/128, t] * sw[n/128, t])), then + b in the output dtype

The int32 products are exact and the scaled tiles are added in float32 in K order, so the result has the bits of the reference.
Tiles are at most 128 rows and exactly 128 columns, so that one product has one pair of scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor
from turbort_cuda.configs import shape_class
from turbort_cuda.kernels.common import KINDS, finish, tile_of
from turbort_cuda.kernels.epilogue import epilogue, unpack_input
from turbort_cuda.kernels.quant import activations
from turbort_cuda.launch import capability, describable, descriptor, multiprocessors, on, rows_of
from turbort_cuda.tuning import pick

SCHEME = "int8-block128"


@triton.jit
def block128_kernel(
    x, w, out, x_scale, w_scale, bias, residual, gate, length, stride_r, stride_gb, stride_gl,
    M, N, K, stride_x, stride_w,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
    TMA: tl.constexpr, EVEN_K: tl.constexpr, KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """As `linear8_kernel`, with a float32 sum of scaled int32 tiles; KIND is x's dtype, which the sum is rounded to."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_k = tl.cdiv(K, BLOCK_K)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        pid_m, pid_n = tile_of(tile, tiles_m, tiles_n, GROUP)
        rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        sx = x_scale + (pid_m * BLOCK_M // 128) * tiles_k
        sw = w_scale + (pid_n * BLOCK_N // 128) * tiles_k
        inner = tl.arange(0, BLOCK_K)
        if not TMA:
            left = x + tl.where(rows < M, rows, 0).to(tl.int64)[:, None] * stride_x + inner[None, :]
            right = w + tl.where(cols < N, cols, 0).to(tl.int64)[:, None] * stride_w + inner[None, :]
        for k in tl.range(0, tiles_k, num_stages=STAGES):
            if TMA:
                a = x.load([pid_m * BLOCK_M, k * BLOCK_K])
                b = w.load([pid_n * BLOCK_N, k * BLOCK_K])
            elif EVEN_K:
                a = tl.load(left + k * BLOCK_K)
                b = tl.load(right + k * BLOCK_K)
            else:
                here = (inner < K - k * BLOCK_K)[None, :]
                a = tl.load(left + k * BLOCK_K, mask=here, other=0)
                b = tl.load(right + k * BLOCK_K, mask=here, other=0)
            scale = tl.load(sx + k) * tl.load(sw + k)
            acc += tl.dot(a, b.T, out_dtype=tl.int32).to(tl.float32) * scale
        y = acc.to(KIND).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(bias + cols, mask=cols < N, other=0.0).to(KIND).to(tl.float32)[None, :]
            y = y.to(KIND).to(tl.float32)
        inside = (rows < M)[:, None] & (cols < N)[None, :]
        y = finish(y, rows, cols, inside, residual, gate, N, length, stride_r, stride_gb, stride_gl, GELU, RESIDUAL, GATE)
        if TMA:
            out.store([pid_m * BLOCK_M, pid_n * BLOCK_N], y.to(out.dtype))
        else:
            tl.store(out + rows.to(tl.int64)[:, None] * N + cols[None, :], y.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class BlockWeight:
    """An `int8-block128` weight: codes [N, K], float32 scales [ceil(N/128), ceil(K/128)]."""

    values: Tensor
    scales: Tensor


def pack(weight: QTensor, bias: Tensor | None = None) -> BlockWeight:
    """Lay out an `int8-block128` weight; raises InputError for another scheme."""
    if weight.scheme != SCHEME:
        raise InputError(f"the block-scaled linear packs {SCHEME} weights, not {weight.scheme}")
    return BlockWeight(weight.values.contiguous(), weight.scales.contiguous())


def linear(
    x: Tensor | QTensor,
    weight: BlockWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    config: dict[str, Any] | None = None,
) -> Tensor:
    """`turbort.ops.linear` at w8a8-block128 for a weight from `pack`."""
    qx = activations(x, SCHEME)
    values, dtype, shape = unpack_input(qx)
    rows = rows_of(values)
    (m, k), n = rows.shape, weight.values.shape[0]
    device = rows.device
    end = epilogue(shape, n, dtype, device, bias, activation, residual, gate)
    if m == 0:
        return end.finished()
    chosen = dict(config or pick("linear_block128", capability(device), shape_class(m), f"{n}x{k}"))
    block = chosen["BLOCK_M"], chosen["BLOCK_N"], chosen["BLOCK_K"]
    tma = bool(chosen.get("tma")) and all(map(describable, (rows, weight.values, end.out)))
    operands: tuple[Any, ...] = (rows, weight.values, end.out)
    if tma:
        operands = (
            descriptor(rows, block[0], block[2]),
            descriptor(weight.values, block[1], block[2]),
            descriptor(end.out, block[0], block[1]),
        )
    tiles = triton.cdiv(m, block[0]) * triton.cdiv(n, block[1])
    with on(device):
        block128_kernel[(min(tiles, multiprocessors(device) * chosen.get("per_sm", 1)),)](
            *operands, qx.scales, weight.scales, *end.pointers,
            m, n, k, rows.stride(0), weight.values.stride(0),
            *block, chosen["GROUP"], chosen["stages"], tma, k % block[2] == 0, KINDS[dtype], **end.flags,
            num_warps=chosen["warps"], num_stages=chosen["stages"],
        )  # fmt: skip
    return end.finished()
