"""Preparing keys and values for attention, once per call: two passes over them, and one over the queries for SLA.

Pass 1 (`kernels.sums`): sums over blocks of tokens, from which the mean of k (smoothing) and SLA's pooled blocks follow, and the
largest |v| per channel (e4m3 scales); sums that RoPE's kernel left behind spare reading q and k. Pass 2 (`codes_kernel`): int8
codes of the smoothed k with one scale per block of keys, e4m3 codes of v stored transposed and in operand order. For SLA also
(`state_kernel`) its linear state f(k)^T v and sum f(k), f = softmax over the head, into which the branch's projection goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort_cuda.kernels.common import FLOOR, nearest_int8
from turbort_cuda.kernels.sums import block_sums, finish_sums
from turbort_cuda.launch import capability, multiprocessors, on
from turbort_cuda.tuning import pick


@triton.jit
def feature_map(x):
    """Softmax of each row of x, float32: SLA's f. One reciprocal a row, since a division is a dozen instructions."""
    base = x * 1.4426950408889634
    power = tl.exp2(base - tl.max(base, axis=1)[:, None])
    return power * (1.0 / tl.sum(power, axis=1))[:, None]


@triton.jit
def finish_state_kernel(
    partial, partial_totals, proj, state, totals, chunks, D: tl.constexpr, PART: tl.constexpr, PROJ: tl.constexpr
):
    """PART rows of one head's linear state, summed over chunks, times proj^T (PROJ), in v's dtype; program 0 sums the totals.

    (f S / n) W^T = f (S W^T) / n for a row f and its norm n: one product less for every block of queries. The sum is multiplied
    as two numbers of 16 bits, so that only its end is rounded.
    """
    bh = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * PART + tl.arange(0, PART)
    channel = tl.arange(0, D)
    place = rows[:, None] * D + channel[None, :]
    kind: tl.constexpr = state.dtype.element_ty
    value = tl.zeros((PART, D), dtype=tl.float32)
    for chunk in range(chunks):
        value += tl.load(partial + (bh * chunks + chunk) * D * D + place)
    if PROJ:
        weight = tl.trans(tl.load(proj + channel[:, None] * D + channel[None, :]))
        high = value.to(kind)
        low = (value - high.to(tl.float32)).to(kind)
        value = tl.dot(low, weight, tl.dot(high, weight))
    tl.store(state + bh * D * D + place, value.to(kind))
    if tl.program_id(0) == 0:
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
def codes_kernel(
    k, v, mean, v_scale, codes, k_scales, v_codes, L, H, blocks,
    stride_kb, stride_kl, stride_kh, stride_vb, stride_vl, stride_vh,
    ROWS: tl.constexpr, D: tl.constexpr, INT8: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """A block of keys of one head. codes int8 [B*H, blocks*ROWS, D], v_codes e4m3 [B*H, D, blocks*ROWS]."""
    bh = tl.program_id(1).to(tl.int64)
    batch = bh // H
    head = bh % H
    block = tl.program_id(0)
    cols = tl.arange(0, D)
    rows = block * ROWS + tl.arange(0, ROWS)
    here = (rows < L)[:, None]
    wide = rows.to(tl.int64)[:, None]
    if INT8:
        source = k + batch * stride_kb + head * stride_kh + wide * stride_kl + cols[None, :]
        centre = tl.load(mean + bh * D + cols)
        smooth = tl.where(here, tl.load(source, mask=here, other=0.0).to(tl.float32) - centre[None, :], 0.0)
        amax = tl.maximum(tl.max(tl.abs(smooth)), FLOOR)
        place = (bh * blocks * ROWS + rows)[:, None] * D + cols[None, :]
        tl.store(codes + place, nearest_int8(smooth * (127.0 / amax)))
        tl.store(k_scales + bh * blocks + block, amax / 127.0)
    if FP8:
        source = v + batch * stride_vb + head * stride_vh + wide * stride_vl + cols[None, :]
        unit = 1.0 / tl.load(v_scale + bh * D + cols)
        scaled = tl.load(source, mask=here, other=0.0).to(tl.float32) * unit[None, :]
        eight = tl.minimum(tl.maximum(scaled, -448.0), 448.0).to(tl.float8e4nv)
        place = (bh * D + cols)[:, None] * (blocks * ROWS) + rows[None, :]
        tl.store(v_codes + place, in_operand_order(tl.trans(eight), ROWS, D))


@triton.jit
def state_kernel(
    k, v, state, totals, L, H, tiles, per_chunk, stride_kb, stride_kl, stride_kh, stride_vb, stride_vl, stride_vh,
    ROWS: tl.constexpr, D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`per_chunk` tiles of ROWS tokens of one head: their sums of f(k)^T v [D, D] and f(k) [D], float32 [B*H, chunks, ...].

    A multiprocessor has two programs, each with the next tile on its way: the floor is the reading of k and v. Features are
    added up sixteen rows apart, within threads, and across them once at the end.
    """
    bh = tl.program_id(1).to(tl.int64)
    batch = bh // H
    head = bh % H
    cols = tl.arange(0, D)
    k += batch * stride_kb + head * stride_kh
    v += batch * stride_vb + head * stride_vh
    kv = tl.zeros((D, D), dtype=tl.float32)
    total = tl.zeros((16, D), dtype=tl.float32)
    first = tl.program_id(0) * per_chunk
    for tile in tl.range(first, tl.minimum(first + per_chunk, tiles), num_stages=STAGES):
        rows = tile * ROWS + tl.arange(0, ROWS)
        here = (rows < L)[:, None]
        wide = rows.to(tl.int64)[:, None]
        key = tl.load(k + wide * stride_kl + cols[None, :], mask=here, other=0.0).to(tl.float32)
        value = tl.load(v + wide * stride_vl + cols[None, :], mask=here, other=0.0)
        feature = tl.where(here, feature_map(key), 0.0)
        total += tl.sum(tl.reshape(feature, (ROWS // 16, 16, D)), axis=0)
        kv = tl.dot(tl.trans(feature.to(value.dtype)), value, kv)
    at = bh * tl.num_programs(0) + tl.program_id(0)
    tl.store(totals + at * D + cols, tl.sum(total, axis=0))
    tl.store(state + at * (D * D) + cols[:, None] * D + cols[None, :], kv)


@dataclass(frozen=True)
class Prepared:
    """Keys and values in the form the attention kernel reads; None for what the precision does not need.

    codes int8 [B*H, blocks*rows, d]; k_scales float32 [B*H, blocks]; v_codes e4m3 [B*H, d, blocks*rows]; v_scales
    float32 [B*H, d]; state [B*H, d, d] in v's dtype, the projection in it if one was given, and totals float32 [B*H, d];
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


def prepare(
    k: Tensor,
    v: Tensor,
    rows: int,
    *,
    int8: bool,
    fp8: bool,
    linear: bool,
    sums: Tensor | None = None,
    proj: Tensor | None = None,
    config: Mapping[str, Any] | None = None,
) -> Prepared:
    """Both passes over k and v [B, L, H, d], last axis contiguous.

    sums: those of k over blocks of `rows`, if they are known; proj [d, d], in v's dtype, is multiplied into the linear state.
    """
    batch, length, heads, d = k.shape
    blocks, bh = triton.cdiv(length, rows), batch * heads
    if not (int8 or fp8 or linear):
        return Prepared(blocks, rows)
    tops = None
    if sums is None or fp8:
        found, tops = block_sums(k if sums is None else None, rows, v if fp8 else None)
        sums = found if sums is None else sums
    assert sums is not None
    mean, v_scales, pooled = finish_sums(sums, tops, length, rows, pool=linear)
    chosen = config or pick("prepare", capability(k.device), "wide")
    codes = torch.empty((bh, blocks * rows, d), dtype=torch.int8, device=k.device) if int8 else None
    k_scales = torch.empty((bh, blocks), dtype=torch.float32, device=k.device) if int8 else None
    v_codes = torch.empty((bh, d, blocks * rows), dtype=torch.float8_e4m3fn, device=k.device) if fp8 else None
    if int8 or fp8:
        given = tuple(k if t is None else t for t in (mean, v_scales, codes, k_scales, v_codes))
        with on(k.device):
            codes_kernel[blocks, bh](
                k, v, *given, length, heads, blocks, *k.stride()[:3], *v.stride()[:3], rows, d, int8, fp8,
                num_warps=chosen["warps"],
            )  # fmt: skip
    state, totals = linear_state(k, v, proj, chosen) if linear else (None, None)
    return Prepared(blocks, rows, codes, k_scales, v_codes, v_scales, state, totals, pooled)


def linear_state(k: Tensor, v: Tensor, proj: Tensor | None, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """f(k)^T v (proj^T) [B*H, d, d] in v's dtype and sum f(k), float32 [B*H, d]; see `prepare`.

    `config`: `tile` tokens at once, `state_warps`, `state_stages`, and `per_sm`, programs of a multiprocessor.
    """
    batch, length, heads, d = k.shape
    bh, device = batch * heads, k.device
    tiles = triton.cdiv(length, config["tile"])
    # As many chunks as fill the card once: a program keeps a whole state in registers.
    chunks = max(1, min(tiles, config["per_sm"] * multiprocessors(device) // bh))
    each = triton.cdiv(tiles, chunks)
    chunks = triton.cdiv(tiles, each)
    partial = torch.empty((bh, chunks, d, d), dtype=torch.float32, device=device)
    partial_totals = torch.empty((bh, chunks, d), dtype=torch.float32, device=device)
    state = torch.empty((bh, d, d), dtype=v.dtype, device=device)
    totals = torch.empty((bh, d), dtype=torch.float32, device=device)
    stages, weight = config["state_stages"], partial if proj is None else proj
    with on(device):
        state_kernel[chunks, bh](
            k, v, partial, partial_totals, length, heads, tiles, each, *k.stride()[:3], *v.stride()[:3],
            config["tile"], d, stages, num_warps=config["state_warps"], num_stages=stages,
            **({"maxnreg": config["maxnreg"]} if "maxnreg" in config else {}),
        )  # fmt: skip
        finish_state_kernel[d // 16, bh](
            partial, partial_totals, weight, state, totals, chunks, d, 16, proj is not None, num_warps=4
        )
    return state, totals
