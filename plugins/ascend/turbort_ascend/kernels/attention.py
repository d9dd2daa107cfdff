"""Dense attention through three vendor ops, and sparse-linear attention through the block-sparse one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from turbort.ops.block_map import block_map
from turbort.ops.linear import float_linear
from turbort.ops.sla import linear_branch

npu: Any = torch.ops.npu
ALL = 2147483647
"""Every token before and after is visible."""


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
    return (sparse.transpose(1, 2).to(torch.float32) + linear.to(torch.float32)).to(q.dtype)
