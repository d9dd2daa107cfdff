"""Flash attention with INT8 or 16-bit QK and 16-bit or e4m3 PV, dense or over a list of key blocks, with SLA's linear branch.

    s = q k^T * sq[row] * sk[block] / sqrt(d);  p = exp(s - max);  o = (sum p v) / (sum p)

q is quantised in registers when its tile is loaded, one scale per row: no pass over memory, and finer than one scale per tile.
Scores are int32, softmax float32 in base 2. P is rounded to v's dtype, or made as 448 p and rounded to e4m3. Source of the
scheme: SageAttention (arXiv 2410.02367, 2411.10958). The sparse form is `turbort.ops.sla_attention`: see
`turbort_cuda.kernels.sla`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import unknown
from turbort.precision import ATTENTION
from turbort_cuda.kernels.common import FLOOR, ROUND, nearest_int8
from turbort_cuda.kernels.kv import Prepared, feature_map, prepare
from turbort_cuda.launch import capability, describable, descriptor, on
from turbort_cuda.tuning import pick


@triton.jit
def in_operand_order(p, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """p [ROWS, KEYS] with keys in the order of `kv.in_operand_order`, so that no value changes its thread.

    A thread holds columns 8j + 2t and 8j + 2t + 1 of a product's result, and needs 4t to 4t + 3 of each 16 as 8-bit operand.
    """
    split = tl.reshape(p, (ROWS, KEYS // 16, 2, 4, 2))
    return tl.reshape(tl.permute(split, (0, 1, 3, 2, 4)), (ROWS, KEYS))


@triton.jit
def scores(
    q, k, block, L, bh, blocks, stride_kl,
    BLOCK_N: tl.constexpr, D: tl.constexpr, INT8: tl.constexpr, TMA: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """q k^T for one block of keys, unscaled: int32, or float32 in 16 bits. TAIL: some keys may lie at or past L."""
    keys = block * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, D)
    if INT8:
        if TMA:
            key = k.load([(bh * blocks + block) * BLOCK_N, 0])
        else:
            key = tl.load(k + (bh.to(tl.int64) * blocks * BLOCK_N + keys)[:, None] * D + cols[None, :])
        s = tl.dot(q, key.T, out_dtype=tl.int32)
    else:
        if TAIL:
            key = tl.load(k + keys.to(tl.int64)[:, None] * stride_kl + cols[None, :], mask=(keys < L)[:, None], other=0.0)
        else:
            key = tl.load(k + keys.to(tl.int64)[:, None] * stride_kl + cols[None, :])
        s = tl.dot(q, key.T)
    return s


@triton.jit
def absorb(
    acc, total, top, s, factor, v, k_scales, block, L, bh, blocks, stride_vl,
    BLOCK_N: tl.constexpr, D: tl.constexpr, INT8: tl.constexpr, FP8: tl.constexpr, TMA: tl.constexpr, TAIL: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """The new (acc, total, top) after the scores of one block of keys. TAIL masks keys at or past L; other blocks are whole.

    BIASED: scores become float32 by an integer sum, 1.5 * 2^23 too large, instead of a conversion; see `common.ROUND`.
    """
    keys = block * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, D)
    s = (s + 0x4B400000).to(tl.float32, bitcast=True) if BIASED else s.to(tl.float32)
    scale = factor
    if INT8:
        scale = factor * tl.load(k_scales + bh * blocks + block)
    if TAIL:
        s = tl.where((keys < L)[None, :], s, float("-inf"))
    # Scales are positive, so the maximum may be taken before them and one fma does scale and shift.
    most = tl.max(s, axis=1) - (ROUND if BIASED else 0.0)
    higher = tl.maximum(top, most * scale)
    # e4m3 wants p times 448: a larger exponent gives it for nothing, and the same factor in the sum takes it out again.
    shift = (8.807354922057604 if FP8 else 0.0) - higher
    if BIASED:
        shift -= ROUND * scale
    p = tl.exp2(tl.fma(s, tl.broadcast_to(scale[:, None], s.shape), tl.broadcast_to(shift[:, None], s.shape)))
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(p, axis=1)
    # A product of its own, added afterwards: a wgmma that accumulated across iterations would be in flight over the loop's
    # back edge, which makes ptxas serialise every wgmma of the kernel. It also keeps e4m3 sums in full float32.
    if FP8:
        if TMA:
            value = v.load([bh * D, block * BLOCK_N])
        else:
            value = tl.load(v + (bh.to(tl.int64) * D + cols)[:, None] * (blocks * BLOCK_N) + keys[None, :])
        update = tl.dot(in_operand_order(p, s.shape[0], BLOCK_N).to(tl.float8e4nv), value.T)
    else:
        if TAIL:
            value = tl.load(v + keys.to(tl.int64)[:, None] * stride_vl + cols[None, :], mask=(keys < L)[:, None], other=0.0)
        else:
            value = tl.load(v + keys.to(tl.int64)[:, None] * stride_vl + cols[None, :])
        update = tl.dot(p.to(value.dtype), value)
    # An explicit fma: Triton would fold a sum back into the product's accumulator.
    return tl.fma(acc, tl.broadcast_to(fade[:, None], acc.shape), update), total, higher


@triton.jit
def attention_kernel(
    q, k, v, out, k_scales, v_scales, lut, state, totals, proj_bias, LQ, LK, H, blocks, chosen, softmax_scale,
    stride_qb, stride_ql, stride_qh, stride_kb, stride_kl, stride_kh, stride_vb, stride_vl, stride_vh,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, INT8: tl.constexpr, FP8: tl.constexpr, TMA: tl.constexpr,
    SPARSE: tl.constexpr, LINEAR: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of one head. SPARSE: `chosen` ascending key blocks from lut int32 [B*H, query blocks, chosen].

    `softmax_scale` is log2(e) / sqrt(d). LINEAR: the projection is in `state` already, see `kv.finish_state_kernel`. The last
    block of the walk is the only one that can reach past LK.
    """
    block_m = tl.program_id(0)
    bh = tl.program_id(1)
    batch = (bh // H).to(tl.int64)
    head = bh % H
    rows = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, D)
    inside = (rows < LQ)[:, None]
    source = q + batch * stride_qb + head * stride_qh + rows.to(tl.int64)[:, None] * stride_ql + cols[None, :]
    given = tl.load(source, mask=inside, other=0.0)
    if INT8:
        full = given.to(tl.float32)
        amax = tl.maximum(tl.max(tl.abs(full), axis=1), FLOOR)
        query = nearest_int8(full * (127.0 / amax)[:, None])
        factor = amax * (softmax_scale / 127.0)
    else:
        query = given
        factor = tl.zeros((BLOCK_M,), dtype=tl.float32) + softmax_scale
        k += batch * stride_kb + head * stride_kh
    if not FP8:
        v += batch * stride_vb + head * stride_vh
    if SPARSE:
        lut += (bh.to(tl.int64) * tl.num_programs(0) + block_m) * chosen
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    last = tl.load(lut + chosen - 1) if SPARSE else chosen - 1
    if AHEAD:
        # The products of the next block run while this one's softmax is computed. 8-bit keys are padded: no mask is needed.
        block = tl.load(lut) if SPARSE else 0
        s = scores(query, k, block, LK, bh, blocks, stride_kl, BLOCK_N, D, INT8, TMA, False)
        for step in tl.range(1, chosen, num_stages=STAGES):
            following = tl.load(lut + step) if SPARSE else step
            coming = scores(query, k, following, LK, bh, blocks, stride_kl, BLOCK_N, D, INT8, TMA, False)
            block = tl.load(lut + step - 1) if SPARSE else step - 1
            acc, total, top = absorb(
                acc, total, top, s, factor, v, k_scales, block, LK, bh, blocks, stride_vl,
                BLOCK_N, D, INT8, FP8, TMA, False, BIASED,
            )  # fmt: skip
            s = coming
    else:
        for step in tl.range(0, chosen - 1, num_stages=STAGES):
            block = tl.load(lut + step) if SPARSE else step
            s = scores(query, k, block, LK, bh, blocks, stride_kl, BLOCK_N, D, INT8, TMA, False)
            acc, total, top = absorb(
                acc, total, top, s, factor, v, k_scales, block, LK, bh, blocks, stride_vl,
                BLOCK_N, D, INT8, FP8, TMA, False, BIASED,
            )  # fmt: skip
        s = scores(query, k, last, LK, bh, blocks, stride_kl, BLOCK_N, D, INT8, TMA, True)
    acc, total, top = absorb(
        acc, total, top, s, factor, v, k_scales, last, LK, bh, blocks, stride_vl, BLOCK_N, D, INT8, FP8, TMA, True, BIASED
    )
    y = acc * (1.0 / total)[:, None]
    if FP8:
        y = y * tl.load(v_scales + bh * D + cols)[None, :]
    if LINEAR:
        kind: tl.constexpr = out.dtype.element_ty
        # Read again rather than kept: the tile would occupy registers through the whole loop.
        full = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        feature = feature_map(full)
        weight = tl.sum(feature * tl.load(totals + bh * D + cols)[None, :], axis=1)
        square = cols[:, None] * D + cols[None, :]
        line = tl.dot(feature.to(kind), tl.load(state + bh.to(tl.int64) * (D * D) + square))
        y += line * (1.0 / (weight + 1e-5))[:, None] + tl.load(proj_bias + cols).to(tl.float32)[None, :]
    target = out + ((batch * LQ + rows)[:, None] * H + head) * D + cols[None, :]
    tl.store(target, y.to(out.dtype.element_ty), mask=inside)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ready: Prepared,
    config: dict[str, Any],
    *,
    lut: Tensor | None = None,
    proj_bias: Tensor | None = None,
) -> Tensor:
    """Run the kernel on [B, L, H, d] tensors whose last axis is contiguous; returns q's shape and dtype."""
    batch, lq, heads, d = q.shape
    rows, cols = config["BLOCK_M"], config["BLOCK_N"]
    hopper = _hopper() if config.get("gluon") else None
    if hopper is not None and hopper.suits(v, ready, rows):
        made: Tensor = hopper.launch(q, v, ready, config, lut=lut, proj_bias=proj_bias)
        return made
    out = torch.empty((batch, lq, heads, d), dtype=q.dtype, device=q.device)
    int8, fp8 = ready.codes is not None, ready.v_codes is not None
    keys: Any = k if ready.codes is None else ready.codes
    values: Any = v if ready.v_codes is None else ready.v_codes
    chosen = ready.blocks if lut is None else lut.shape[-1]
    # One block needs no TMA; and with a single key, 64 rows and e4m3, half of the rows were NaN with it (Triton 3.6, H100).
    tma = bool(config.get("tma")) and chosen > 1 and ready.codes is not None and describable(ready.codes.view(-1, d))
    if tma:
        keys = descriptor(keys.view(-1, d), cols, d)
        if fp8:
            values = descriptor(values.view(-1, values.shape[-1]), d, cols)
    given = (ready.k_scales, ready.v_scales, lut, ready.state, ready.totals, proj_bias)
    with on(q.device):
        attention_kernel[triton.cdiv(lq, rows), batch * heads](
            q, keys, values, out, *(out if t is None else t for t in given), lq, k.shape[1], heads, ready.blocks, chosen,
            1.4426950408889634 * d**-0.5, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            rows, cols, d, int8, fp8, tma, lut is not None, ready.state is not None, config["stages"],
            bool(config.get("ahead")) and int8, bool(config.get("biased")) and int8,
            num_warps=config["warps"], num_stages=config["stages"],
            **({"maxnreg": config["maxnreg"]} if "maxnreg" in config else {}),
        )  # fmt: skip
    return out


def _hopper() -> Any | None:
    """The kernel in Gluon, or None where this Triton does not have the parts of Gluon that it needs."""
    try:
        from turbort_cuda.kernels import attention_hopper
    except (ImportError, AttributeError):
        return None
    return attention_hopper


def inner_contiguous(x: Tensor) -> Tensor:
    """x, or a copy whose last axis is contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def attention(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None, config: dict[str, Any] | None = None) -> Tensor:
    """`turbort.ops.attention` at `int8`, `int8-fp8`, or in 16 bits when `precision` is None."""
    if precision not in (None, *ATTENTION):
        raise unknown("attention precision", str(precision), ATTENTION)
    q, k, v = map(inner_contiguous, (q, k, v))
    chosen = dict(config or pick("attention", capability(q.device), f"dense-{precision}"))
    ready = prepare(k, v, chosen["BLOCK_N"], int8=precision is not None, fp8=precision == "int8-fp8", linear=False)
    return launch(q, k, v, ready, chosen)
