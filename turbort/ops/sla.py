"""Sparse-linear attention (SLA, arXiv 2509.24006) as TurboDiffusion trains it."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.op import op
from turbort.ops._numeric import no_autocast, wide
from turbort.ops.attention import dense
from turbort.ops.attention_int8 import check_precision
from turbort.ops.block_map import block_map, plain
from turbort.ops.linear import float_linear
from turbort.ops.samples_attention import sla_attention_samples
from turbort.ops.sla_sparse import sparse_attention
from turbort.precision import ATTENTION, FLOATS
from turbort.quant.qtensor import QTensor

EPS = 1e-5


@op(samples=sla_attention_samples, precisions=FLOATS + ATTENTION)
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
) -> Tensor:
    """o = softmax attention over the chosen key blocks + (linear attention over all keys) W^T + b.

    q [B, Lq, H, d], k and v [B, Lk, H, d], after norm and RoPE; q and k may bring sums over blocks of tokens along
    (`turbort.precision.SUMS`), which need not be made then. proj_weight [d, d] and proj_bias [d] are shared
    by all heads. Returns [B, Lq, H, d] in q's dtype.

    * Blocks: `turbort.ops.block_map.block_map(q, k, topk, block)`.
    * Sparse branch: softmax(q k^T / sqrt(d)) v, renormalised over the chosen keys. `precision` (`int8`,
      `int8-fp8`) changes this branch only; q and k then have one scale per SLA block.
    * Linear branch, f = softmax over d: f(q) (sum f(k)^T v) / (1e-5 + f(q) . sum f(k)), in float32.

    Differentiable in every tensor argument when `precision` is None; the choice of blocks has no gradient.
    """
    if precision is not None:
        check_precision(precision)
    if q.device.type == "meta":
        return torch.empty_like(plain(q))
    lut = block_map(q, k, topk, block)
    q, k = plain(q), plain(k)
    every_block = lut.shape[-1] * block[1] >= k.shape[1]
    if every_block and precision is None:
        sparse = dense(q, k, v)
    else:
        sparse = sparse_attention(q, k, v, lut, block, precision)
    # Contiguous, because a linear over a permuted input takes a much slower path on CPUs.
    linear = float_linear(linear_branch(q, k, v).to(q.dtype).contiguous(), proj_weight, proj_bias)
    return (wide(sparse) + wide(linear)).to(q.dtype)


def linear_branch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """f(q) (f(k)^T v) / (1e-5 + f(q) . sum f(k)), f = softmax over head_dim, all keys; float32 [B, Lq, H, d]."""
    with no_autocast(q):
        fq = wide(q).transpose(1, 2).softmax(dim=-1)
        fk = wide(k).transpose(1, 2).softmax(dim=-1)
        weighted = fq @ (fk.transpose(-1, -2) @ wide(v).transpose(1, 2))
        total = fq @ fk.sum(dim=-2, keepdim=True).transpose(-1, -2)
        return (weighted / (EPS + total)).transpose(1, 2)
