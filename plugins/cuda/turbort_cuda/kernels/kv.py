"""Preparing keys and values for attention, once per call: two passes over them, and one over the queries for SLA.

Pass 1 (`sums_kernel`): sums over blocks of tokens, from which the mean of k (smoothing) and SLA's pooled blocks follow, and the
largest |v| per channel (e4m3 scales). Pass 2 (`prepare_kernel`): int8 codes of the smoothed k with one scale per block of keys,
e4m3 codes of v stored transposed and in operand order, and SLA's linear state f(k)^T v and sum f(k), f = softmax over the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.ops.block_map import tree_sum
from turbort_cuda.kernels.common import FLOOR, nearest_int8
from turbort_cuda.launch import capability, multiprocessors, on
from turbort_cuda.tuning import pick


@triton.jit
def folded(x, ROWS: tl.constexpr, D: tl.constexpr):
    """Sum of x [ROWS, D] over rows, adding the upper half to the lower half again and again: one order on every device.

    ROWS is a power of two from 16 to 1024.
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
    x = tl.sum(tl.reshape(x, (2, 8, D)), axis=0)
    x = tl.sum(tl.reshape(x, (2, 4, D)), axis=0)
    x = tl.sum(tl.reshape(x, (2, 2, D)), axis=0)
    return tl.sum(x, axis=0)


@triton.jit
def feature_map(x):
    """Softmax of each row of x, float32: SLA's f. One reciprocal a row, since a division is a dozen instructions."""
    base = x * 1.4426950408889634
    power = tl.exp2(base - tl.max(base, axis=1)[:, None])
    return power * (1.0 / tl.sum(power, axis=1))[:, None]


@triton.jit
def sums_kernel(
    x, v, sums, tops, L, H, blocks, stride_xb, stride_xl, stride_xh, stride_vb, stride_vl, stride_vh,
    ROWS: tl.constexpr, D: tl.constexpr, TOPS: tl.constexpr, MEANS: tl.constexpr,
):  # fmt: skip
    """One block of tokens of one head: sums (or means) float32 [B, blocks, H, D]; with TOPS also max |v| in the same layout."""
    block = tl.program_id(0)
    batch = (tl.program_id(1) // H).to(tl.int64)
    head = tl.program_id(1) % H
    rows = block * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, D)
    here = (rows < L)[:, None]
    place = ((batch * blocks + block) * H + head) * D + cols
    source = x + batch * stride_xb + head * stride_xh + rows.to(tl.int64)[:, None] * stride_xl + cols[None, :]
    total = folded(tl.load(source, mask=here, other=0.0).to(tl.float32), ROWS, D)
    if MEANS:
        total = tl.div_rn(total, tl.minimum(L - block * ROWS, ROWS).to(tl.float32))
    tl.store(sums + place, total)
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


@triton.jit
def finish_state_kernel(partial, partial_totals, state, totals, chunks, D: tl.constexpr, PART: tl.constexpr):
    """PART values of one head's linear state, summed over chunks and rounded to v's dtype; program 0 sums the totals."""
    bh = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * PART + tl.arange(0, PART)
    value = tl.zeros((PART,), dtype=tl.float32)
    for chunk in range(chunks):
        value += tl.load(partial + (bh * chunks + chunk) * D * D + cols)
    tl.store(state + bh * D * D + cols, value.to(state.dtype.element_ty))
    if tl.program_id(0) == 0:
        channel = tl.arange(0, D)
        total = tl.zeros((D,), dtype=tl.float32)
        for chunk in range(chunks):
            total += tl.load(partial_totals + (bh * chunks + chunk) * D + channel)
        tl.store(totals + bh * D + channel, total)


@triton.jit
def in_operand_order(v, ROWS: tl.constexpr, D: tl.constexpr):
    """v [D, ROWS] with its keys, 16 by 16, in the order 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15.

    P comes out of one product and goes into the next as an 8-bit operand, whose registers hold keys in this order; see
    `attention.in_operand_order`. A sum over keys may be taken in any order that both sides agree on.
    """
    split = tl.reshape(v, (D, ROWS // 16, 2, 4, 2))
    return tl.reshape(tl.permute(split, (0, 1, 3, 2, 4)), (D, ROWS))


@triton.jit
def prepare_kernel(
    k, v, mean, v_scale, codes, k_scales, v_codes, state, totals, L, H, blocks, per_chunk,
    stride_kb, stride_kl, stride_kh, stride_vb, stride_vl, stride_vh,
    ROWS: tl.constexpr, D: tl.constexpr, INT8: tl.constexpr, FP8: tl.constexpr, LINEAR: tl.constexpr,
):  # fmt: skip
    """`per_chunk` blocks of keys of one head. codes int8 [B*H, blocks*ROWS, D], v_codes e4m3 [B*H, D, blocks*ROWS].

    LINEAR: state float32 [B*H, chunks, D, D] and totals [B*H, chunks, D], partial sums over this chunk.
    """
    bh = tl.program_id(1).to(tl.int64)
    batch = bh // H
    head = bh % H
    cols = tl.arange(0, D)
    if INT8:
        centre = tl.load(mean + bh * D + cols)
    if FP8:
        unit = 1.0 / tl.load(v_scale + bh * D + cols)
    if LINEAR:
        kv = tl.zeros((D, D), dtype=tl.float32)
        total = tl.zeros((D,), dtype=tl.float32)
    k += batch * stride_kb + head * stride_kh
    v += batch * stride_vb + head * stride_vh
    first = tl.program_id(0) * per_chunk
    for block in range(first, tl.minimum(first + per_chunk, blocks)):
        rows = block * ROWS + tl.arange(0, ROWS)
        here = (rows < L)[:, None]
        wide = rows.to(tl.int64)[:, None]
        if INT8:
            key = tl.load(k + wide * stride_kl + cols[None, :], mask=here, other=0.0).to(tl.float32)
            smooth = tl.where(here, key - centre[None, :], 0.0)
            amax = tl.maximum(tl.max(tl.abs(smooth)), FLOOR)
            place = (bh * blocks * ROWS + rows)[:, None] * D + cols[None, :]
            tl.store(codes + place, nearest_int8(smooth * (127.0 / amax)))
            tl.store(k_scales + bh * blocks + block, amax / 127.0)
        if FP8:
            scaled = tl.load(v + wide * stride_vl + cols[None, :], mask=here, other=0.0).to(tl.float32) * unit[None, :]
            eight = tl.minimum(tl.maximum(scaled, -448.0), 448.0).to(tl.float8e4nv)
            place = (bh * D + cols)[:, None] * (blocks * ROWS) + rows[None, :]
            tl.store(v_codes + place, in_operand_order(tl.trans(eight), ROWS, D))
        if LINEAR:
            # Read again, half a block at a time, from the L1 cache: the state leaves too few registers for whole blocks.
            for part in tl.static_range(ROWS // 64):
                rows = block * ROWS + part * 64 + tl.arange(0, 64)
                here = (rows < L)[:, None]
                wide = rows.to(tl.int64)[:, None]
                key = tl.load(k + wide * stride_kl + cols[None, :], mask=here, other=0.0).to(tl.float32)
                value = tl.load(v + wide * stride_vl + cols[None, :], mask=here, other=0.0)
                feature = tl.where(here, feature_map(key), 0.0)
                total += tl.sum(feature, axis=0)
                kv = tl.dot(tl.trans(feature.to(value.dtype)), value, kv)
    if LINEAR:
        at = bh * tl.num_programs(0) + tl.program_id(0)
        tl.store(totals + at * D + cols, total)
        tl.store(state + at * (D * D) + cols[:, None] * D + cols[None, :], kv)


@dataclass(frozen=True)
class Prepared:
    """Keys and values in the form the attention kernel reads; None for what the precision does not need.

    codes int8 [B*H, blocks*rows, d]; k_scales float32 [B*H, blocks]; v_codes e4m3 [B*H, d, blocks*rows]; v_scales
    float32 [B*H, d]; state [B*H, d, d] in v's dtype and totals float32 [B*H, d];
    pooled float32 [B, blocks, H, d], the means of the smoothed blocks of k.
    """

    blocks: int
    rows: int
    codes: Tensor | None = None
    k_scales: Tensor | None = None
    v_codes: Tensor | None = None
    v_scales: Tensor | None = None
    state: Tensor | None = None
    totals: Tensor | None = None
    pooled: Tensor | None = None


def block_sums(x: Tensor, rows: int, v: Tensor | None = None, *, means: bool = False) -> tuple[Tensor, Tensor | None]:
    """Sums (or means) of x [B, L, H, d] over blocks of `rows` tokens, float32 [B, blocks, H, d], and max |v| alike."""
    batch, length, heads, d = x.shape
    blocks = triton.cdiv(length, rows)
    sums = torch.empty((batch, blocks, heads, d), dtype=torch.float32, device=x.device)
    tops = None if v is None else torch.empty_like(sums)
    with on(x.device):
        sums_kernel[blocks, batch * heads](
            x, x if v is None else v, sums, sums if tops is None else tops, length, heads, blocks,
            *x.stride()[:3], *(x if v is None else v).stride()[:3], rows, d, v is not None, means, num_warps=4,
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


def prepare(
    k: Tensor, v: Tensor, rows: int, *, int8: bool, fp8: bool, linear: bool, config: Mapping[str, Any] | None = None
) -> Prepared:
    """Both passes over k and v [B, L, H, d], last axis contiguous.

    `state_warps` in the configuration: the linear state has a launch of its own with that many warps, which reads them again.
    """
    batch, length, heads, d = k.shape
    blocks, bh = triton.cdiv(length, rows), batch * heads
    device = k.device
    if not (int8 or fp8 or linear):
        return Prepared(blocks, rows)
    sums, tops = block_sums(k, rows, v if fp8 else None)
    mean, v_scales, pooled = finish_sums(sums, tops, length, rows, pool=linear)
    chosen = config or pick("prepare", capability(device), "wide")
    # As many chunks as fill the card once: a program keeps a whole state in registers.
    chunks = max(1, min(blocks, chosen["per_sm"] * multiprocessors(device) // bh)) if linear else 1
    per_chunk = triton.cdiv(blocks, chunks)
    chunks = triton.cdiv(blocks, per_chunk)
    codes = torch.empty((bh, blocks * rows, d), dtype=torch.int8, device=device) if int8 else None
    k_scales = torch.empty((bh, blocks), dtype=torch.float32, device=device) if int8 else None
    v_codes = torch.empty((bh, d, blocks * rows), dtype=torch.float8_e4m3fn, device=device) if fp8 else None
    partial = torch.empty((bh, chunks, d, d), dtype=torch.float32, device=device) if linear else None
    partial_totals = torch.empty((bh, chunks, d), dtype=torch.float32, device=device) if linear else None
    given = tuple(k if t is None else t for t in (mean, v_scales, codes, k_scales, v_codes, partial, partial_totals))
    state = totals = None

    def run(programs: int, each: int, do: tuple[bool, bool, bool], warps: int) -> None:
        prepare_kernel[programs, bh](
            k, v, *given, length, heads, blocks, each, *k.stride()[:3], *v.stride()[:3], rows, d, *do,
            num_warps=warps, num_stages=chosen["stages"],
        )  # fmt: skip

    with on(device):
        if linear and "state_warps" not in chosen:
            run(chunks, per_chunk, (int8, fp8, True), chosen["warps"])
        else:
            if int8 or fp8:
                run(blocks, 1, (int8, fp8, False), chosen["warps"])
            if linear:
                run(chunks, per_chunk, (False, False, True), chosen["state_warps"])
        if linear:
            state = torch.empty((bh, d, d), dtype=v.dtype, device=device)
            totals = torch.empty((bh, d), dtype=torch.float32, device=device)
            part = min(1024, d * d)
            finish_state_kernel[d * d // part, bh](partial, partial_totals, state, totals, chunks, d, part, num_warps=4)
    return Prepared(blocks, rows, codes, k_scales, v_codes, v_scales, state, totals, pooled)
