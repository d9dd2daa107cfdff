"""Sums over blocks of tokens, in the order of `turbort.quant.sums.tree_sum`, and what follows from them in one launch.

From the sums of k: its mean (smoothing) and the means of its smoothed blocks (SLA's block map); beside them the largest |v| a
channel, for e4m3 scales.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.quant.sums import tree_sum
from turbort_cuda.kernels.common import FLOOR
from turbort_cuda.launch import on


@triton.jit
def folded(x, ROWS: tl.constexpr, D: tl.constexpr):
    """Sum of x [ROWS, D] over rows, adding the upper half to the lower half again and again: one order on every device.

    ROWS is a power of two from 1 to 1024.
    """
    if ROWS >= 1024:
        x = tl.sum(tl.reshape(x, (2, 512, D)), axis=0)
    if ROWS >= 512:
        x = tl.sum(tl.reshape(x, (2, 256, D)), axis=0)
    if ROWS >= 256:
        x = tl.sum(tl.reshape(x, (2, 128, D)), axis=0)
    if ROWS >= 128:
        x = tl.sum(tl.reshape(x, (2, 64, D)), axis=0)
    if ROWS >= 64:
        x = tl.sum(tl.reshape(x, (2, 32, D)), axis=0)
    if ROWS >= 32:
        x = tl.sum(tl.reshape(x, (2, 16, D)), axis=0)
    if ROWS >= 16:
        x = tl.sum(tl.reshape(x, (2, 8, D)), axis=0)
    if ROWS >= 8:
        x = tl.sum(tl.reshape(x, (2, 4, D)), axis=0)
    if ROWS >= 4:
        x = tl.sum(tl.reshape(x, (2, 2, D)), axis=0)
    return tl.sum(x, axis=0)


@triton.jit
def sums_kernel(
    x, v, sums, tops, L, H, blocks, stride_xb, stride_xl, stride_xh, stride_vb, stride_vl, stride_vh,
    ROWS: tl.constexpr, D: tl.constexpr, SUMS: tl.constexpr, TOPS: tl.constexpr,
):  # fmt: skip
    """One block of tokens of one head: sums of x (SUMS) and max |v| (TOPS), float32 [B, blocks, H, D] each."""
    block = tl.program_id(0)
    batch = (tl.program_id(1) // H).to(tl.int64)
    head = tl.program_id(1) % H
    rows = block * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, D)
    here = (rows < L)[:, None]
    place = ((batch * blocks + block) * H + head) * D + cols
    if SUMS:
        source = x + batch * stride_xb + head * stride_xh + rows.to(tl.int64)[:, None] * stride_xl + cols[None, :]
        tl.store(sums + place, folded(tl.load(source, mask=here, other=0.0).to(tl.float32), ROWS, D))
    if TOPS:
        source = v + batch * stride_vb + head * stride_vh + rows.to(tl.int64)[:, None] * stride_vl + cols[None, :]
        tl.store(tops + place, tl.max(tl.abs(tl.load(source, mask=here, other=0.0).to(tl.float32)), axis=0))


@triton.jit
def finish_sums_kernel(
    sums, tops, mean, v_scale, pooled, L, H, blocks,
    ROWS: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, MEAN: tl.constexpr, TOPS: tl.constexpr,
    POOL: tl.constexpr,
):  # fmt: skip
    """WIDTH channels of one head, from the sums of its blocks: mean of k [B*H, D] (MEAN; read otherwise), e4m3 scales of v
    (TOPS), and means of the smoothed blocks [B, blocks, H, D] (POOL), as `turbort.ops.block_map` computes them.
    """
    bh = tl.program_id(1)
    block = tl.arange(0, COUNT)
    cols = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    here = (block < blocks)[:, None]
    place = (((bh // H) * blocks + block)[:, None] * H + bh % H) * D + cols[None, :]
    if MEAN or POOL:
        total = tl.load(sums + place, mask=here, other=0.0)
    if MEAN:
        centre = tl.div_rn(folded(total, COUNT, WIDTH), L.to(tl.float32))
        tl.store(mean + bh * D + cols, centre)
    else:
        centre = tl.load(mean + bh * D + cols)
    if TOPS:
        top = tl.max(tl.load(tops + place, mask=here, other=0.0), axis=0)
        tl.store(v_scale + bh * D + cols, tl.maximum(top, FLOOR) / 448.0)
    if POOL:
        count = tl.maximum(tl.minimum(L - block * ROWS, ROWS), 1).to(tl.float32)
        part = tl.div_rn(total, tl.broadcast_to(count[:, None], total.shape))
        tl.store(pooled + place, part - centre[None, :], mask=here)


def block_sums(x: Tensor | None, rows: int, v: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    """Sums of x [B, L, H, d] over blocks of `rows` tokens, float32 [B, blocks, H, d], and max |v| alike; None for None."""
    read = x if x is not None else v
    assert read is not None  # nobody asks for nothing
    batch, length, heads, d = read.shape
    blocks = triton.cdiv(length, rows)
    sums, tops = (
        None if t is None else torch.empty((batch, blocks, heads, d), dtype=torch.float32, device=t.device) for t in (x, v)
    )
    given = tuple(read if t is None else t for t in (x, v, sums, tops))
    with on(read.device):
        sums_kernel[blocks, batch * heads](
            *given, length, heads, blocks, *given[0].stride()[:3], *given[1].stride()[:3], rows, d,
            x is not None, v is not None, num_warps=4,
        )  # fmt: skip
    return sums, tops


FOLDED = (16, 32, 64, 128, 256, 512, 1024)
"""Numbers of blocks whose sum one program takes in the reference's order."""


def finish_sums(
    sums: Tensor, tops: Tensor | None, length: int, rows: int, *, pool: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mean of k [B*H, d], e4m3 scales of v [B*H, d], and the smoothed means of blocks [B, blocks, H, d] in one launch."""
    batch, blocks, heads, d = sums.shape
    alone = blocks in FOLDED
    mean = torch.empty((batch * heads, d), dtype=torch.float32, device=sums.device)
    if not alone:
        mean = (tree_sum(sums, dim=1) / length).view(batch * heads, d)
    v_scales = None if tops is None else torch.empty_like(mean)
    pooled = torch.empty_like(sums) if pool else None
    width = 32 if blocks <= 256 else 16
    if alone or pool or tops is not None:
        with on(sums.device):
            finish_sums_kernel[d // width, batch * heads](
                sums, *(sums if t is None else t for t in (tops, mean, v_scales, pooled)), length, heads, blocks,
                rows, max(16, triton.next_power_of_2(blocks)), d, width, alone, tops is not None, pool, num_warps=8,
            )  # fmt: skip
    return mean, v_scales, pooled
