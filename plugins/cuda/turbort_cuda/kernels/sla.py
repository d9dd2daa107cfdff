"""Sparse-linear attention: block map, block-sparse attention by look-up table, linear branch and projection.

Launches: sums of k and q blocks, unless RoPE left them (and max |v|), their mean and scales, codes of k and v, the linear state
and its sum, scores (one float32 matmul), choice of blocks, and one attention kernel whose end adds the projected linear branch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError, unknown
from turbort.ops.block_map import chosen_blocks, known_sums, plain
from turbort.precision import ATTENTION
from turbort.quant.qtensor import QTensor
from turbort_cuda.kernels.attention import inner_contiguous, launch
from turbort_cuda.kernels.kv import prepare
from turbort_cuda.kernels.sums import block_sums
from turbort_cuda.launch import capability, on
from turbort_cuda.tuning import pick


@triton.jit
def choose_kernel(scores, lut, BLOCKS, CHOSEN, WIDTH: tl.constexpr):
    """One query block: the CHOSEN best of BLOCKS scores, ties to the lower index, as ascending indices.

    The CHOSEN-th best is found bit by bit: a score's bits, the sign's meaning turned round, order as unsigned integers.
    """
    row = tl.program_id(0).to(tl.int64)
    mine = tl.arange(0, WIDTH)
    real = mine < BLOCKS
    score = tl.load(scores + row * BLOCKS + mine, mask=real, other=0.0) + 0.0  # -0 and 0 are equal, and so must their bits be
    bits = score.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    order = tl.where(real, order, 0)
    least = tl.full((), 0, tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        trial = least | bit
        least = tl.where(tl.sum((order >= trial).to(tl.int32), axis=0) >= CHOSEN, trial, least)
        bit = bit >> 1
    better = order > least
    level = real & (order == least)
    room = CHOSEN - tl.sum(better.to(tl.int32), axis=0)
    taken = better | (level & (tl.cumsum(level.to(tl.int32), axis=0) <= room))
    place = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(lut + row * CHOSEN + place, mine, mask=taken)


def choose(scores: Tensor, count: int) -> Tensor:
    """scores float32 [..., nk] -> int32 [..., count]."""
    blocks = scores.shape[-1]
    flat = scores.reshape(-1, blocks).contiguous()
    lut = torch.empty((*scores.shape[:-1], count), dtype=torch.int32, device=scores.device)
    width = max(16, triton.next_power_of_2(blocks))
    with on(scores.device):
        choose_kernel[(flat.shape[0],)](flat, lut, blocks, count, width, num_warps=1 if width <= 256 else 4)
    return lut


def scores_of(q_sums: Tensor, pooled: Tensor) -> Tensor:
    """Pooled scores float32 [B, H, nq, nk] times the rows of a query block, from sums of q and means of k [B, n, H, d].

    A query block compares its own scores with each other, so its sum does for its mean. Whole blocks have a power of two of rows:
    their scores are those of `turbort.ops.block_map` in every bit but the exponent.
    """
    return q_sums.transpose(1, 2) @ pooled.permute(0, 2, 3, 1)


def sla_attention(
    q: Tensor | QTensor,
    k: Tensor | QTensor,
    v: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    *,
    topk: float,
    block: tuple[int, int] = (64, 128),
    precision: str | None = None,
    config: dict[str, Any] | None = None,
) -> Tensor:
    """`turbort.ops.sla_attention` in 16 bits (`precision` None), `int8` or `int8-fp8`. Sums that q and k bring are not made."""
    if precision not in (None, *ATTENTION):
        raise unknown("attention precision", str(precision), ATTENTION)
    if not 0.0 < topk <= 1.0:
        raise InputError(f"topk {topk} is outside (0, 1]", fix="give the share of key blocks to keep, such as 0.1")
    q_sums, k_sums = known_sums(q, block[0]), known_sums(k, block[1])
    q, k, v = map(inner_contiguous, (plain(q), plain(k), v))
    chosen = {
        **pick("attention", capability(q.device), f"sparse-{block[0]}x{block[1]}"),
        **(config or {}),
        "BLOCK_M": block[0],
        "BLOCK_N": block[1],
    }
    int8, fp8 = precision is not None, precision == "int8-fp8"
    proj = proj_weight.to(v.dtype).contiguous()
    ready = prepare(k, v, block[1], int8=int8, fp8=fp8, linear=True, sums=k_sums, proj=proj)
    q_sums = block_sums(q, block[0])[0] if q_sums is None else q_sums
    assert q_sums is not None
    assert ready.pooled is not None  # `linear=True` always makes them
    scores = scores_of(q_sums, ready.pooled)
    lut = choose(scores, chosen_blocks(topk, scores.shape[-1]))
    return launch(q, k, v, ready, chosen, lut=lut, proj_bias=proj_bias.to(q.dtype).contiguous())
