"""`w8a8` and `fp8`: both operands in 8 bits, one scale per row of x and one per row of the weight.

    y[m, n] = (sum_k x[m, k] w[n, k]) * sx[m] * sw[n] + b[n], then GELU, or residual + gate * y

The sum is exact in int32 (int8) or float32 (e4m3). Persistent: each program walks over tiles, so that the loads of the next
tile overlap the end of the last. Operands come through tensor descriptors where the card has them and strides allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor
from turbort_cuda.configs import shape_class
from turbort_cuda.kernels.common import columns, finish, tile_of
from turbort_cuda.kernels.epilogue import epilogue, unpack_input
from turbort_cuda.kernels.quant import activations
from turbort_cuda.launch import capability, describable, descriptor, multiprocessors, on, rows_of
from turbort_cuda.tuning import pick


@triton.jit
def store_part(
    acc, sx, rows, row, col, out, w_scale, bias, residual, gate, length, stride_r, stride_gb, stride_gl, M, N,
    WIDTH: tl.constexpr, TMA: tl.constexpr,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Scale, finish and store WIDTH columns of sums that begin at (row, col)."""
    cols = col + tl.arange(0, WIDTH)
    y = acc.to(tl.float32) * columns(w_scale, cols, N)[None, :] * sx[:, None]
    if HAS_BIAS:
        y += columns(bias, cols, N)[None, :]
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    y = finish(y, rows, cols, inside, residual, gate, N, length, stride_r, stride_gb, stride_gl, GELU, RESIDUAL, GATE)
    if TMA:
        out.store([row, col], y.to(out.dtype))
    else:
        tl.store(out + rows.to(tl.int64)[:, None] * N + cols[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def linear8_kernel(
    x, w, out, x_scale, w_scale, bias, residual, gate, length, stride_r, stride_gb, stride_gl,
    M, N, K, stride_x, stride_w,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
    TMA: tl.constexpr, EVEN_K: tl.constexpr, INT: tl.constexpr, FLATTEN: tl.constexpr, SPECIALIZE: tl.constexpr,
    HALVES: tl.constexpr,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """One persistent program; x [M, K] and w [N, K] are pointers, or descriptors of BLOCK x BLOCK_K tiles when TMA."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    kind: tl.constexpr = tl.int32 if INT else tl.float32
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN, warp_specialize=SPECIALIZE):
        pid_m, pid_n = tile_of(tile, tiles_m, tiles_n, GROUP)
        rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=kind)
        if TMA:
            for k in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
                a = x.load([pid_m * BLOCK_M, k * BLOCK_K])
                b = w.load([pid_n * BLOCK_N, k * BLOCK_K])
                acc = tl.dot(a, b.T, acc, out_dtype=kind)
        else:
            inner = tl.arange(0, BLOCK_K)
            # Rows past the end read row 0 again and are never stored, so only K needs a mask.
            left = x + tl.where(rows < M, rows, 0).to(tl.int64)[:, None] * stride_x + inner[None, :]
            right = w + tl.where(cols < N, cols, 0).to(tl.int64)[:, None] * stride_w + inner[None, :]
            for k in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
                if EVEN_K:
                    a = tl.load(left)
                    b = tl.load(right)
                else:
                    here = (inner < K - k * BLOCK_K)[None, :]
                    a = tl.load(left, mask=here, other=0.0)
                    b = tl.load(right, mask=here, other=0.0)
                acc = tl.dot(a, b.T, acc, out_dtype=kind)
                left += BLOCK_K
                right += BLOCK_K
        sx = tl.load(x_scale + rows, mask=rows < M, other=0.0)
        if HALVES:
            # Half of the columns at a time: the end of a wide tile then needs no more registers than its loop.
            pair = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            first, second = tl.split(pair)
            store_part(
                first, sx, rows, pid_m * BLOCK_M, pid_n * BLOCK_N, out, w_scale, bias, residual, gate, length, stride_r,
                stride_gb, stride_gl, M, N, BLOCK_N // 2, TMA, HAS_BIAS, GELU, RESIDUAL, GATE,
            )  # fmt: skip
            store_part(
                second, sx, rows, pid_m * BLOCK_M, pid_n * BLOCK_N + BLOCK_N // 2, out, w_scale, bias, residual, gate, length,
                stride_r, stride_gb, stride_gl, M, N, BLOCK_N // 2, TMA, HAS_BIAS, GELU, RESIDUAL, GATE,
            )  # fmt: skip
        else:
            store_part(
                acc, sx, rows, pid_m * BLOCK_M, pid_n * BLOCK_N, out, w_scale, bias, residual, gate, length, stride_r,
                stride_gb, stride_gl, M, N, BLOCK_N, TMA, HAS_BIAS, GELU, RESIDUAL, GATE,
            )  # fmt: skip


@dataclass(frozen=True)
class Weight8:
    """An 8-bit weight: `values` [N, K] with rows contiguous, `scales` float32 [N], the activation scheme that fits it."""

    values: Tensor
    scales: Tensor
    activation: str


def pack(weight: QTensor, bias: Tensor | None = None) -> Weight8:
    """Lay out an `int8-channel` or `fp8-channel` weight; raises InputError for another scheme."""
    schemes = {"int8-channel": "int8-token", "fp8-channel": "fp8-token"}
    if weight.scheme not in schemes:
        raise InputError(f"the 8-bit linear packs {' or '.join(schemes)} weights, not {weight.scheme}")
    return Weight8(weight.values.contiguous(), weight.scales.flatten().contiguous(), schemes[weight.scheme])


def linear(
    x: Tensor | QTensor,
    weight: Weight8,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    config: dict[str, Any] | None = None,
) -> Tensor:
    """`turbort.ops.linear` at w8a8 or fp8 for a weight from `pack`; `config` replaces the table's choice when measuring.

    With `gluon` in the configuration `linear_hopper` takes the calls that suit it, the kernel of this file the others.
    """
    qx = activations(x, weight.activation)
    values, dtype, shape = unpack_input(qx)
    rows = rows_of(values)
    (m, k), n = rows.shape, weight.values.shape[0]
    device = rows.device
    end = epilogue(shape, n, dtype, device, bias, activation, residual, gate)
    if m == 0:
        return end.finished()
    chosen = dict(config or pick("linear8", capability(device), shape_class(m), key(n, k, end.flags)))
    hopper = _hopper() if chosen.get("gluon") and capability(device) == 90 else None
    if hopper is not None and hopper.suits(rows, weight.values, end, chosen):
        hopper.launch(rows, weight.values, qx.scales, weight.scales, end, chosen)
        return end.finished()
    block = chosen["BLOCK_M"], chosen["BLOCK_N"], chosen["BLOCK_K"]
    tma = bool(chosen.get("tma")) and all(map(describable, (rows, weight.values, end.out)))
    halves = bool(chosen.get("halves"))
    operands: tuple[Any, ...] = (rows, weight.values, end.out)
    if tma:
        operands = (
            descriptor(rows, block[0], block[2]),
            descriptor(weight.values, block[1], block[2]),
            descriptor(end.out, block[0], block[1] // 2 if halves else block[1]),
        )
    tiles = triton.cdiv(m, block[0]) * triton.cdiv(n, block[1])
    # A flattened loop keeps its operands' buffers through the end of a tile, and the residual needs 64 KiB beside four of them.
    flatten = bool(chosen.get("flatten")) and (residual is None or chosen["stages"] <= 3)
    with on(device):
        linear8_kernel[(min(tiles, multiprocessors(device) * chosen.get("per_sm", 1)),)](
            *operands, qx.scales, weight.scales, *end.pointers,
            m, n, k, rows.stride(0), weight.values.stride(0),
            *block, chosen["GROUP"], chosen["stages"], tma, k % block[2] == 0, weight.activation == "int8-token",
            flatten, bool(chosen.get("specialize")), halves, **end.flags,
            num_warps=chosen["warps"], num_stages=chosen["stages"],
        )  # fmt: skip
    return end.finished()


def key(n: int, k: int, flags: dict[str, Any]) -> str:
    """Under what a measured configuration is kept: the size, and the end of a tile where that needs another configuration."""
    return f"{n}x{k} residual" if flags["RESIDUAL"] else f"{n}x{k}"


def _hopper() -> Any | None:
    """The kernel in Gluon, or None where this Triton does not have the parts of Gluon that it needs."""
    try:
        from turbort_cuda.kernels import linear_hopper
    except (ImportError, AttributeError):
        return None
    return linear_hopper


def empty_weight(n: int, k: int, *, fp8: bool, device: torch.device) -> Weight8:
    """Random codes with a plausible scale, for benchmarks."""
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
    values = codes.to(torch.float32).to(torch.float8_e4m3fn) if fp8 else codes
    return Weight8(values, torch.full((n,), k**-0.5 / 73, device=device), "fp8-token" if fp8 else "int8-token")
