"""Dense attention through three vendor ops, sparse-linear attention through the block-sparse one, and both in plain matmuls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turbort.ops.block_map import block_map
from turbort.ops.linear import float_linear
from turbort.ops.sla import linear_branch
from turbort.ops.sla_sparse import GATHER_BUDGET, gather, tail_mask, to_blocks

npu: Any = torch.ops.npu
ALL = 2147483647
"""Every token before and after is visible."""


SCORE_BUDGET = 1 << 27
"""Scores held at once where no fused op takes the call (2**27 float32 = 512 MiB)."""


def fused_infer(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by `npu_fused_infer_attention_score`, [B, L, H, d], which graphs may capture."""
    heads, d = q.shape[-2:]
    out: Tensor = npu.npu_fused_infer_attention_score(
        q.contiguous(), k.contiguous(), v.contiguous(), num_heads=heads, scale=d**-0.5, input_layout="BSND"
    )[0]
    return out


def fusion(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    """The same by `npu_fusion_attention`; the vendor does not allow it in an ACL graph."""
    heads, d = q.shape[-2:]
    out: Tensor = npu.npu_fusion_attention(
        q.contiguous(), k.contiguous(), v.contiguous(), heads, "BSND", scale=d**-0.5, pre_tockens=ALL, next_tockens=ALL
    )[0]
    return out


def prompt_flash(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    """The same by `npu_prompt_flash_attention`, the one for inference cards; float16."""
    heads, d = q.shape[-2:]
    out: Tensor = npu.npu_prompt_flash_attention(
        q.contiguous(), k.contiguous(), v.contiguous(), num_heads=heads, scale_value=d**-0.5, next_tokens=ALL, input_layout="BSND"
    )
    return out


def block_sparse(
    q: Tensor, k: Tensor, v: Tensor, proj_weight: Tensor, proj_bias: Tensor, *,
    topk: float, block: tuple[int, int] = (64, 128), precision: str | None = None,
) -> Tensor:  # fmt: skip
    """`turbort.ops.sla_attention`: the reference's choice of blocks, the vendor's sparse branch, a linear branch in torch.

    `npu_block_sparse_attention` wants heads before tokens and a 0/1 mask per block; bfloat16 needs float32 softmax
    (`inner_precise=0`), which float16 gets, too.
    """
    heads, d = q.shape[-2:]
    chosen = block_map(q, k, topk, block).to(torch.int64)
    mask = torch.zeros(*chosen.shape[:-1], -(-k.shape[1] // block[1]), dtype=torch.int8, device=q.device)
    mask.scatter_(-1, chosen, 1)
    queries, keys, values = (t.transpose(1, 2).contiguous() for t in (q, k, v))
    sparse = npu.npu_block_sparse_attention(
        queries, keys, values, mask, list(block), q_input_layout="BNSD", kv_input_layout="BNSD",
        num_key_value_heads=heads, scale_value=d**-0.5, inner_precise=0,
    )[0]  # fmt: skip
    linear = float_linear(linear_branch(q, k, v).to(q.dtype), proj_weight, proj_bias)
    out: Tensor = (sparse.transpose(1, 2).to(torch.float32) + linear.to(torch.float32)).to(q.dtype)
    return out


def plain(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    """Dense attention in matmuls and a float32 softmax, over chunks of queries; for calls that no fused op takes.

    Not `F.scaled_dot_product_attention`: torch-npu maps that to `npu_fusion_attention`, which inference cards lack.
    """
    queries, keys, values = (t.transpose(1, 2) for t in (q, k, v))
    rows = max(1, SCORE_BUDGET // (q.shape[0] * q.shape[2] * k.shape[1]))
    parts = [_softmax_product(part, keys, values, None) for part in torch.split(queries, rows, dim=2)]
    out: Tensor = torch.cat(parts, dim=2).transpose(1, 2)
    return out


def gathered(
    q: Tensor, k: Tensor, v: Tensor, proj_weight: Tensor, proj_bias: Tensor, *,
    topk: float, block: tuple[int, int] = (64, 128), precision: str | None = None,
) -> Tensor:  # fmt: skip
    """`turbort.ops.sla_attention` with the chosen key blocks gathered and multiplied; no fused op, any geometry.

    A masked `F.scaled_dot_product_attention` is not used: on Ascend310P torch-npu's host code refuses its mask.
    """
    batch, length, heads, d = q.shape
    chosen = block_map(q, k, topk, block).flatten(0, 1).to(torch.int64)
    mask = tail_mask(chosen, k.shape[1], block[1])
    queries, keys, values = to_blocks(q, block[0]), to_blocks(k, block[1]), to_blocks(v, block[1])
    step = max(1, GATHER_BUDGET // (batch * heads * chosen.shape[2] * block[1] * d))
    parts = []
    for start in range(0, chosen.shape[1], step):
        span = slice(start, start + step)
        picked = chosen[:, span]
        bias = None if mask is None else mask[:, span]
        parts.append(_softmax_product(queries[:, span], gather(keys, picked), gather(values, picked), bias))
    sparse = torch.cat(parts, dim=1).view(batch, heads, -1, d)[:, :, :length].transpose(1, 2)
    linear = float_linear(linear_branch(q, k, v).to(q.dtype), proj_weight, proj_bias)
    return (sparse.to(torch.float32) + linear.to(torch.float32)).to(q.dtype)


def _softmax_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v in float32, returned in q's dtype; [..., L, d]."""
    scores = q.to(torch.float32) @ k.to(torch.float32).transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    out: Tensor = (scores.softmax(dim=-1) @ v.to(torch.float32)).to(q.dtype)
    return out
