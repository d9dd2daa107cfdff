"""Preparing keys and values for attention, once per call: two passes over them, and one over the queries for SLA.

Pass 1 (`sums_kernel`): sums over blocks of tokens, from which the mean of k (smoothing) and SLA's pooled blocks follow, and the
largest |v| per channel (e4m3 scales). Pass 2 (`prepare_kernel`): int8 codes of the smoothed k with one scale per block of keys,
e4m3 codes of v stored transposed and in operand order, and SLA's linear state f(k)^T v and sum f(k), f = softmax over the head.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Sum of x [ROWS, D] over rows, adding the upper half to the lower half again and again: one order on every device."""
    if ROWS >= 128:
        x = tl.sum(tl.reshape(x, (2, 64, D)), axis=0)
    if ROWS >= 64:
        x = tl.sum(tl.reshape(x, (2, 32, D)), axis=0)
    x = tl.sum(tl.reshape(x, (2, 16, D)), axis=0)
    x = tl.sum(tl.reshape(x, (2, 8, D)), axis=0)
    x = tl.sum(tl.reshape(x, (2, 4, D)), axis=0)
    x = tl.sum(tl.reshape(x, (2, 2, D)), axis=0)
    return tl.sum(x, axis=0)


@triton.jit
def sums_kernel(
    x, v, sums, tops, L, H, blocks, stride_xb, stride_xl, stride_xh, stride_vb, stride_vl, stride_vh,
    ROWS: tl.constexpr, D: tl.constexpr, TOPS: tl.constexpr,
):  # fmt: skip
    """One block of tokens of one head: sums float32 [B, blocks, H, D]; with TOPS also max |v| in the same layout."""
    block = tl.program_id(0)
    batch = (tl.program_id(1) // H).to(tl.int64)
    head = tl.program_id(1) % H
    rows = block * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, D)
    here = (rows < L)[:, None]
    place = ((batch * blocks + block) * H + head) * D + cols
    source = x + batch * stride_xb + head * stride_xh + rows.to(tl.int64)[:, None] * stride_xl + cols[None, :]
    tl.store(sums + place, folded(tl.load(source, mask=here, other=0.0).to(tl.float32), ROWS, D))
    if TOPS:
        source = v + batch * stride_vb + head * stride_vh + rows.to(tl.int64)[:, None] * stride_vl + cols[None, :]
        tl.store(tops + place, tl.max(tl.abs(tl.load(source, mask=here, other=0.0).to(tl.float32)), axis=0))


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
    first = tl.program_id(0) * per_chunk
    for block in range(first, tl.minimum(first + per_chunk, blocks)):
        rows = block * ROWS + tl.arange(0, ROWS)
        here = (rows < L)[:, None]
        wide = rows.to(tl.int64)[:, None]
        key = tl.load(k + batch * stride_kb + head * stride_kh + wide * stride_kl + cols[None, :], mask=here, other=0.0)
        key = key.to(tl.float32)
        if FP8 or LINEAR:
            value = tl.load(v + batch * stride_vb + head * stride_vh + wide * stride_vl + cols[None, :], mask=here, other=0.0)
        if INT8:
            smooth = tl.where(here, key - centre[None, :], 0.0)
            amax = tl.maximum(tl.max(tl.abs(smooth)), FLOOR)
            place = (bh * blocks * ROWS + rows)[:, None] * D + cols[None, :]
            tl.store(codes + place, nearest_int8(smooth * (127.0 / amax)))
            tl.store(k_scales + bh * blocks + block, amax / 127.0)
        if FP8:
            scaled = value.to(tl.float32) * unit[None, :]
            eight = tl.minimum(tl.maximum(scaled, -448.0), 448.0).to(tl.float8e4nv)
            place = (bh * D + cols)[:, None] * (blocks * ROWS) + rows[None, :]
            tl.store(v_codes + place, in_operand_order(tl.trans(eight), ROWS, D))
        if LINEAR:
            power = tl.exp(key - tl.max(key, axis=1)[:, None])
            feature = tl.where(here, power / tl.sum(power, axis=1)[:, None], 0.0)
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
    k_sums float32 [B, blocks, H, d] and k_mean [B, H, d].
    """

    blocks: int
    rows: int
    codes: Tensor | None
    k_scales: Tensor | None
    v_codes: Tensor | None
    v_scales: Tensor | None
    state: Tensor | None
    totals: Tensor | None
    k_sums: Tensor | None
    k_mean: Tensor | None = None


def block_sums(x: Tensor, rows: int, v: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Sums of x [B, L, H, d] over blocks of `rows` tokens, float32 [B, blocks, H, d], and max |v| alike."""
    batch, length, heads, d = x.shape
    blocks = triton.cdiv(length, rows)
    sums = torch.empty((batch, blocks, heads, d), dtype=torch.float32, device=x.device)
    tops = None if v is None else torch.empty_like(sums)
    with on(x.device):
        sums_kernel[blocks, batch * heads](
            x, x if v is None else v, sums, sums if tops is None else tops, length, heads, blocks,
            *x.stride()[:3], *(x if v is None else v).stride()[:3], rows, d, v is not None, num_warps=4,
        )  # fmt: skip
    return sums, tops


def prepare(k: Tensor, v: Tensor, rows: int, *, int8: bool, fp8: bool, linear: bool) -> Prepared:
    """Both passes over k and v [B, L, H, d], last axis contiguous."""
    batch, length, heads, d = k.shape
    blocks, bh = triton.cdiv(length, rows), batch * heads
    device = k.device
    sums = mean = tops = None
    if int8 or linear:
        sums, tops = block_sums(k, rows, v if fp8 else None)
        mean = tree_sum(sums, dim=1) / length
    if not (int8 or fp8 or linear):
        return Prepared(blocks, rows, None, None, None, None, None, None, None)
    v_scales = None if tops is None else (tops.amax(dim=1).clamp_min(1e-8) / 448.0).view(bh, d)
    chunks = max(1, min(blocks, 4 * multiprocessors(device) // bh)) if linear else blocks
    per_chunk = triton.cdiv(blocks, chunks)
    chunks = triton.cdiv(blocks, per_chunk)
    codes = torch.empty((bh, blocks * rows, d), dtype=torch.int8, device=device) if int8 else None
    k_scales = torch.empty((bh, blocks), dtype=torch.float32, device=device) if int8 else None
    v_codes = torch.empty((bh, d, blocks * rows), dtype=torch.float8_e4m3fn, device=device) if fp8 else None
    state = torch.empty((bh, chunks, d, d), dtype=torch.float32, device=device) if linear else None
    totals = torch.empty((bh, chunks, d), dtype=torch.float32, device=device) if linear else None
    given = (mean, v_scales, codes, k_scales, v_codes, state, totals)
    chosen = pick("prepare", capability(device), "wide")
    with on(device):
        prepare_kernel[chunks, bh](
            k, v, *(k if t is None else t for t in given), length, heads, blocks, per_chunk,
            *k.stride()[:3], *v.stride()[:3], rows, d, int8, fp8, linear,
            num_warps=chosen["warps"], num_stages=chosen["stages"],
        )  # fmt: skip
    if state is not None and totals is not None:
        state, totals = state.sum(dim=1).to(v.dtype), totals.sum(dim=1)
    return Prepared(blocks, rows, codes, k_scales, v_codes, v_scales, state, totals, sums, mean)
