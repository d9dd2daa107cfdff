"""`bsq8` and `bsq4`: int8 tokens times block-sparse weights, skipping what is empty.

    y[m, n] = sx[m] * sum over kept blocks of x_k w_nk^T + b[n]

Tensor cores multiply tiles far larger than the 4 x 4 or 8 x 8 tiles that carry a scale, so the kernel walks blocks of 64 x 64
weights and skips those in which no tile is kept. Weights are dequantised to bfloat16 in registers (int8 tokens are exact
in bfloat16); sums are float32. With tiles dropped at random nearly every block keeps some (at density 0.3 the share of empty
blocks is 0.7^64), so skipping wins only where whole blocks are pruned: below about half of the blocks, because the product
runs at the 16-bit rate and `w8a8` at twice that.
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
from turbort_cuda.configs import shape_class
from turbort_cuda.kernels.common import finish
from turbort_cuda.kernels.epilogue import epilogue, unpack_input
from turbort_cuda.kernels.quant import activations
from turbort_cuda.launch import capability, on, rows_of
from turbort_cuda.tuning import pick

EDGE = 64


@triton.jit
def bsq_kernel(
    x, w, out, x_scale, w_scale, starts, columns, bias, residual, gate, length, stride_r, stride_gb, stride_gl,
    M, N, K, stride_x,
    BLOCK_M: tl.constexpr, EDGE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """One BLOCK_M x 64 tile of the output; w int8 [kept, 64, 64], w_scale float32 [kept, 64/TILE, 64/TILE]."""
    pid_n = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    edge = tl.arange(0, EDGE)
    cols = pid_n * EDGE + edge
    left = x + tl.where(rows < M, rows, 0).to(tl.int64)[:, None] * stride_x + edge[None, :]
    spread = (edge[:, None] // TILE) * (EDGE // TILE) + edge[None, :] // TILE
    acc = tl.zeros((BLOCK_M, EDGE), dtype=tl.float32)
    for at in tl.range(tl.load(starts + pid_n), tl.load(starts + pid_n + 1), num_stages=STAGES):
        first = tl.load(columns + at) * EDGE
        a = tl.load(left + first, mask=(first + edge < K)[None, :], other=0)
        codes = tl.load(w + at * (EDGE * EDGE) + edge[:, None] * EDGE + edge[None, :])
        scale = tl.load(w_scale + at * ((EDGE // TILE) * (EDGE // TILE)) + spread)
        b = (codes.to(tl.float32) * scale).to(tl.bfloat16)
        acc = tl.dot(a.to(tl.bfloat16), b.T, acc)
    y = acc * tl.load(x_scale + rows, mask=rows < M, other=0.0)[:, None]
    if HAS_BIAS:
        y += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    y = finish(y, rows, cols, inside, residual, gate, N, length, stride_r, stride_gb, stride_gl, GELU, RESIDUAL, GATE)
    tl.store(out + rows.to(tl.int64)[:, None] * N + cols[None, :], y.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class SparseWeight:
    """Blocks of 64 x 64 that keep something, row by row of blocks.

    codes int8 [kept, 64, 64]; scales float32 [kept, 64/t, 64/t]; columns int32 [kept]; starts int32 [block rows + 1].
    """

    codes: Tensor
    scales: Tensor
    columns: Tensor
    starts: Tensor
    shape: tuple[int, int]
    tile: int

    @property
    def density(self) -> float:
        """Share of 64 x 64 blocks that are multiplied."""
        return len(self.columns) / max(1, (len(self.starts) - 1) * -(-self.shape[1] // EDGE))


def pack(weight: QTensor, bias: Tensor | None = None) -> SparseWeight:
    """Gather the blocks of a `bsq8` or `bsq4` weight that are not empty; raises InputError for another scheme."""
    if weight.scheme not in ("bsq8", "bsq4") or weight.mask is None:
        raise InputError(f"the block-sparse linear packs bsq8 or bsq4 weights, not {weight.scheme}")
    n, k = weight.values.shape
    per = EDGE // weight.tile
    codes = _blocks(weight.values, EDGE)
    scales = _blocks(weight.scales, per)
    kept = _blocks(weight.mask, per).any(dim=-1).any(dim=-1)
    starts = F.pad(kept.sum(dim=1).cumsum(0), (1, 0)).to(torch.int32)
    columns = kept.nonzero()[:, 1].to(torch.int32).contiguous()
    return SparseWeight(codes[kept].contiguous(), scales[kept].contiguous(), columns, starts, (n, k), weight.tile)


def _blocks(x: Tensor, edge: int) -> Tensor:
    """[R, C] -> [ceil(R/edge), ceil(C/edge), edge, edge], zero-padded."""
    padded = F.pad(x, (0, -x.shape[1] % edge, 0, -x.shape[0] % edge))
    return padded.view(padded.shape[0] // edge, edge, padded.shape[1] // edge, edge).transpose(1, 2)


def linear(
    x: Tensor | QTensor,
    weight: SparseWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`turbort.ops.linear` at bsq8 or bsq4 for a weight from `pack`."""
    qx = activations(x, "int8-token")
    values, dtype, shape = unpack_input(qx)
    rows = rows_of(values)
    m, (n, k) = rows.shape[0], weight.shape
    device = rows.device
    end = epilogue(shape, n, dtype, device, bias, activation, residual, gate)
    if m == 0:
        return end.finished()
    chosen = pick("linear_bsq", capability(device), shape_class(m))
    with on(device):
        bsq_kernel[triton.cdiv(m, chosen["BLOCK_M"]), triton.cdiv(n, EDGE)](
            rows, weight.codes, end.out, qx.scales, weight.scales, weight.starts, weight.columns, *end.pointers,
            m, n, k, rows.stride(0), chosen["BLOCK_M"], EDGE, weight.tile, chosen["stages"], **end.flags,
            num_warps=chosen["warps"], num_stages=chosen["stages"],
        )  # fmt: skip
    return end.finished()
