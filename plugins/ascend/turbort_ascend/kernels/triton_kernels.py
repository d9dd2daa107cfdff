"""Triton kernels for what the vendor's ops do not compute on A2 and A3: block-scaled int8 matmuls and INT8 attention.

Tile sizes are those that `bishengir-compile` 1.2.0 accepts for Ascend910B3, 910_9391 and 950PR (`make ascend-kernels`).
A load beyond the end of a tensor yields 0, which no sum notices; scores beyond the keys are set to -1e30.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def int8_block_matmul(
    a, b, row_scales, col_scales, out, M, N, K, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr
):
    """out[m, n] = sum over K tiles of int32(a_t b_t^T) * (row_scales[m, t] * col_scales[n, t]), added in float32 in K order.

    a int8 [M, K], b int8 [N, K], K a multiple of TILE_K (a load masked over both axes summed wrongly in the executed IR of
    triton-ascend 3.2.0); scales float32 [ceil(M / TILE_M), K / TILE_K] and likewise for N; grid (M tiles, N tiles).
    """
    row, col = tl.program_id(0), tl.program_id(1)
    tiles = K // TILE_K
    m = row * TILE_M + tl.arange(0, TILE_M)
    n = col * TILE_N + tl.arange(0, TILE_N)
    inner = tl.arange(0, TILE_K)
    total = tl.zeros((TILE_M, TILE_N), dtype=tl.float32)
    for t in range(tiles):
        k = t * TILE_K + inner
        left = tl.load(a + m[:, None] * K + k[None, :], mask=m[:, None] < M, other=0)
        right = tl.load(b + n[:, None] * K + k[None, :], mask=n[:, None] < N, other=0)
        scale = tl.load(row_scales + row * tiles + t) * tl.load(col_scales + col * tiles + t)
        total += tl.dot(left, tl.trans(right), out_dtype=tl.int32).to(tl.float32) * scale
    tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def int8_attention(q, k, v, q_scales, k_scales, out, LQ, LK, scale, D: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr):
    """softmax(int32(q k^T) * q_scale * k_scale * scale) v, one query tile of one head per program; grid (query tiles, heads).

    q int8 [H, LQ, D], k int8 [H, LK, D], v 16-bit [H, LK, D]; one float32 scale per tile of q and of k; scores, softmax and
    sums in float32, P in v's dtype.
    """
    tile, head = tl.program_id(0), tl.program_id(1)
    rows = tile * TILE_Q + tl.arange(0, TILE_Q)
    channels = tl.arange(0, D)
    columns = tl.arange(0, TILE_K)
    queries = tl.load(q + (head * LQ + rows[:, None]) * D + channels[None, :], mask=rows[:, None] < LQ, other=0)
    q_scale = tl.load(q_scales + head * tl.cdiv(LQ, TILE_Q) + tile) * scale
    tiles = tl.cdiv(LK, TILE_K)
    highest = tl.full((TILE_Q,), -1e30, tl.float32)
    total = tl.zeros((TILE_Q,), tl.float32)
    sums = tl.zeros((TILE_Q, D), tl.float32)
    for t in range(tiles):
        at = t * TILE_K + columns
        keys = tl.load(k + (head * LK + at[:, None]) * D + channels[None, :], mask=at[:, None] < LK, other=0)
        scores = tl.dot(queries, tl.trans(keys), out_dtype=tl.int32).to(tl.float32) * (
            q_scale * tl.load(k_scales + head * tiles + t)
        )
        scores = tl.where(at[None, :] < LK, scores, -1e30)
        top = tl.maximum(highest, tl.max(scores, 1))
        p = tl.exp(scores - top[:, None])
        shrink = tl.exp(highest - top)
        total = total * shrink + tl.sum(p, 1)
        values = tl.load(v + (head * LK + at[:, None]) * D + channels[None, :], mask=at[:, None] < LK, other=0.0)
        sums = sums * shrink[:, None] + tl.dot(p.to(v.dtype.element_ty), values)
        highest = top
    place = out + (head * LQ + rows[:, None]) * D + channels[None, :]
    tl.store(place, (sums / total[:, None]).to(out.dtype.element_ty), mask=rows[:, None] < LQ)


@triton.jit
def int8_sparse_attention(
    q, k, v, q_scales, k_scales, chosen, out, LQ, LK, CHOSEN, scale, D: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr
):
    """`int8_attention` over the key tiles that `chosen` int32 [H, query tiles, CHOSEN] names for each query tile."""
    tile, head = tl.program_id(0), tl.program_id(1)
    rows = tile * TILE_Q + tl.arange(0, TILE_Q)
    channels = tl.arange(0, D)
    columns = tl.arange(0, TILE_K)
    q_tiles, k_tiles = tl.cdiv(LQ, TILE_Q), tl.cdiv(LK, TILE_K)
    queries = tl.load(q + (head * LQ + rows[:, None]) * D + channels[None, :], mask=rows[:, None] < LQ, other=0)
    q_scale = tl.load(q_scales + head * q_tiles + tile) * scale
    highest = tl.full((TILE_Q,), -1e30, tl.float32)
    total = tl.zeros((TILE_Q,), tl.float32)
    sums = tl.zeros((TILE_Q, D), tl.float32)
    for i in range(CHOSEN):
        t = tl.load(chosen + (head * q_tiles + tile) * CHOSEN + i)
        at = t * TILE_K + columns
        keys = tl.load(k + (head * LK + at[:, None]) * D + channels[None, :], mask=at[:, None] < LK, other=0)
        scores = tl.dot(queries, tl.trans(keys), out_dtype=tl.int32).to(tl.float32) * (
            q_scale * tl.load(k_scales + head * k_tiles + t)
        )
        scores = tl.where(at[None, :] < LK, scores, -1e30)
        top = tl.maximum(highest, tl.max(scores, 1))
        p = tl.exp(scores - top[:, None])
        shrink = tl.exp(highest - top)
        total = total * shrink + tl.sum(p, 1)
        values = tl.load(v + (head * LK + at[:, None]) * D + channels[None, :], mask=at[:, None] < LK, other=0.0)
        sums = sums * shrink[:, None] + tl.dot(p.to(v.dtype.element_ty), values)
        highest = top
    place = out + (head * LQ + rows[:, None]) * D + channels[None, :]
    tl.store(place, (sums / total[:, None]).to(out.dtype.element_ty), mask=rows[:, None] < LQ)
