"""Ops on the Triton kernels. Triton itself is imported at the first call: listing kernels must not need it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from turbort.ops.attention_int8 import K_ROWS, Q_ROWS, quantise_rows, smooth
from turbort.ops.block_map import block_map
from turbort.ops.linear import float_linear
from turbort.ops.sla import linear_branch
from turbort.quant.block128 import BLOCK
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize
from turbort_ascend.kernels.linear import epilogue


@cache
def kernels() -> Any:
    """The module of Triton kernels."""
    from turbort_ascend.kernels import triton_kernels

    return triton_kernels


def linear_block128(
    x: Tensor | QTensor, weight: QTensor, bias: Tensor | None = None, *,
    activation: str | None = None, residual: Tensor | None = None, gate: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`turbort.ops.linear` at w8a8-block128: TurboDiffusion's checkpoints as they are, in their order of operations."""
    q = x if isinstance(x, QTensor) else quantize(x, "int8-block128")
    rows = q.values.reshape(-1, q.shape[-1]).contiguous()
    (m, k), n = rows.shape, weight.shape[0]
    y = torch.empty(m, n, dtype=q.dtype, device=rows.device)
    kernels().int8_block_matmul[(-(-m // BLOCK), -(-n // BLOCK))](
        rows, weight.values, q.scales, weight.scales, y, m, n, k, TILE_M=BLOCK, TILE_N=BLOCK, TILE_K=BLOCK
    )
    y = y if bias is None else y + bias.to(y.dtype)
    return epilogue(y.view(*q.shape[:-1], n), activation, residual, gate)


def attention_int8(q: Tensor, k: Tensor, v: Tensor, *, precision: str = "int8") -> Tensor:
    """Dense attention with smoothed int8 keys, as `turbort.ops.attention_int8`: scales per 128 queries and 64 keys."""
    out = _heads_first(q).new_empty(q.shape[0] * q.shape[2], q.shape[1], q.shape[3])
    codes, scales = _codes(q, Q_ROWS)
    key_codes, key_scales = _codes(smooth(k), K_ROWS)
    grid = (-(-q.shape[1] // Q_ROWS), out.shape[0])
    kernels().int8_attention[grid](
        codes, key_codes, _heads_first(v), scales, key_scales, out, q.shape[1], k.shape[1], q.shape[-1] ** -0.5,
        D=q.shape[-1], TILE_Q=Q_ROWS, TILE_K=K_ROWS,
    )  # fmt: skip
    return out.view(q.shape[0], q.shape[2], *out.shape[1:]).transpose(1, 2)


def sla_int8(
    q: Tensor, k: Tensor, v: Tensor, proj_weight: Tensor, proj_bias: Tensor, *,
    topk: float, block: tuple[int, int] = (64, 128), precision: str = "int8",
) -> Tensor:  # fmt: skip
    """`turbort.ops.sla_attention` at int8: one scale per SLA block; the linear branch stays in float32."""
    chosen = block_map(q, k, topk, block).flatten(0, 1).contiguous()
    out = _heads_first(q).new_empty(chosen.shape[0], q.shape[1], q.shape[3])
    codes, scales = _codes(q, block[0])
    key_codes, key_scales = _codes(smooth(k), block[1])
    kernels().int8_sparse_attention[(chosen.shape[1], chosen.shape[0])](
        codes, key_codes, _heads_first(v), scales, key_scales, chosen, out, q.shape[1], k.shape[1], chosen.shape[2],
        q.shape[-1] ** -0.5, D=q.shape[-1], TILE_Q=block[0], TILE_K=block[1],
    )  # fmt: skip
    sparse = out.view(q.shape[0], q.shape[2], *out.shape[1:]).transpose(1, 2)
    linear = float_linear(linear_branch(q, k, v).to(q.dtype), proj_weight, proj_bias)
    return (sparse.to(torch.float32) + linear.to(torch.float32)).to(q.dtype)


def _heads_first(x: Tensor) -> Tensor:
    """[B, L, H, d] -> contiguous [B * H, L, d]."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _codes(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """int8 [B * H, L, d] and one float32 scale per `rows` rows, [B * H, ceil(L / rows)]."""
    codes, scales = quantise_rows(_heads_first(x), rows)
    return codes.to(torch.int8), scales[:, ::rows, 0].contiguous()
