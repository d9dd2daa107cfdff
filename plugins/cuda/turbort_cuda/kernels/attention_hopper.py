"""INT8 attention for Hopper in Gluon, where the order of products, softmax and loads is written down and not left to a compiler.

The same arithmetic as `attention.attention_kernel`: int8 scores, float32 softmax in base 2, e4m3 or 16-bit PV, dense or over a
list of key blocks with SLA's linear branch. One warpgroup takes 64 queries; two programs share a multiprocessor. In every step

    the scores of block j+1 are started; the softmax of block j runs while they are computed; P V of block j follows, which the
    other program's softmax hides; the buffers that became free are filled by TMA two blocks ahead.

Of the 1,250 cycles that the Triton kernel takes for a block, the tensor cores need 490 and the softmax's instructions 560.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from turbort_cuda.kernels.common import FLOOR
from turbort_cuda.kernels.kv import Prepared
from turbort_cuda.launch import on

ROWS, KEYS, WIDTH = 64, 128, 128
"""Queries of a program, keys of a block, and the width of a head: the only sizes that this kernel has."""


# Renamed after Triton 3.6.
thread_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier
load_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def nearest(x):
    """x in -127..127 to the nearest int8, ties to even: adding 1.5 * 2^23 leaves no bits below the point."""
    return ((x + 12582912.0) - 12582912.0).to(gl.int8)


@gluon.jit
def softmax_step(
    s, factor, scale, top, total, first, LK, FP8: gl.constexpr, TAIL: gl.constexpr, S: gl.constexpr, P: gl.constexpr
):
    """From int32 scores of a block that starts at key `first`: (p as left operand, fade of earlier sums, top, total)."""
    ROWS: gl.constexpr = s.shape[0]
    KEYS: gl.constexpr = s.shape[1]
    x = s.to(gl.float32)
    if TAIL:
        keys = first + gl.arange(0, KEYS, layout=gl.SliceLayout(0, S))
        x = gl.where((keys < LK)[None, :], x, float("-inf"))
    unit = factor * scale
    higher = gl.maximum(top, gl.max(x, axis=1) * unit)
    shift = -higher
    if FP8:
        shift = 8.807354922057604 - higher  # p times 448; see `attention.absorb`
    p = gl.exp2(gl.fma(x, unit[:, None].broadcast_to(ROWS, KEYS), shift[:, None].broadcast_to(ROWS, KEYS)))
    fade = gl.exp2(top - higher)
    total = total * fade + gl.sum(p, axis=1)
    if FP8:
        # The order of `kv.in_operand_order`: no value changes its thread.
        order = p.reshape(ROWS, KEYS // 16, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(ROWS, KEYS)
        operand = gl.convert_layout(order.to(gl.float8e4nv), P)
    else:
        operand = gl.convert_layout(p.to(gl.bfloat16), P)
    return operand, fade, higher, total


@gluon.jit
def fill(
    k, v, keys, values, k_ready, v_ready, slot, block, base, v_row, v_column,
    FP8: gl.constexpr, KEYS: gl.constexpr, LOAD_K: gl.constexpr, LOAD_V: gl.constexpr, pred,
):  # fmt: skip
    """Start the loads of one block of keys, or of values, into `slot`."""
    if LOAD_K:
        mbarrier.expect(k_ready.index(slot), k.block_type.nbytes, pred=pred)
        load_tile(k, [base + block * KEYS, 0], k_ready.index(slot), keys.index(slot), pred=pred)
    if LOAD_V:
        mbarrier.expect(v_ready.index(slot), v.block_type.nbytes, pred=pred)
        if FP8:
            load_tile(v, [v_row, block * KEYS], v_ready.index(slot), values.index(slot), pred=pred)
        else:
            load_tile(v, [v_row + block * KEYS, v_column], v_ready.index(slot), values.index(slot), pred=pred)


@gluon.jit
def block_at(lut, step, chosen, SPARSE: gl.constexpr):
    """The key block of a step; the last one for steps past the end."""
    block = gl.minimum(step, chosen - 1)
    if SPARSE:
        block = gl.load(lut + block)
    return block


@gluon.jit
def spread(rows, like, LAYOUT: gl.constexpr):
    """One value a row, over all columns of `like`."""
    return gl.convert_layout(rows, gl.SliceLayout(1, LAYOUT))[:, None].broadcast_to(like.shape[0], like.shape[1])


@gluon.jit
def faded(acc, fade, LAYOUT: gl.constexpr):
    """What was summed so far, with the new maximum. 16-bit products are then added by the tensor cores; e4m3 ones, whose sums
    the tensor cores keep in fewer bits, are added in float32 afterwards.
    """
    return acc * spread(fade, acc, LAYOUT)


@gluon.jit
def hopper_attention_kernel(
    q, k, v, out, k_scales, v_scales, lut, state, totals, proj, proj_bias, LQ, LK, H, blocks, chosen, softmax_scale,
    stride_qb, stride_ql, stride_qh,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, FP8: gl.constexpr, SPARSE: gl.constexpr, LINEAR: gl.constexpr,
    FLOOR: gl.constexpr,
):  # fmt: skip
    """M queries of one head; arguments as `attention.attention_kernel`, k and v as tensor descriptors."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 32])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 32 if FP8 else 16])
    P: gl.constexpr = gl.DotOperandLayout(0, OUT, 4 if FP8 else 2)
    HALF: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    ROWWISE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    value_type: gl.constexpr = gl.float8e4nv if FP8 else gl.bfloat16

    block_m = gl.program_id(0)
    bh = gl.program_id(1)
    batch = (bh // H).to(gl.int64)
    head = bh % H
    if SPARSE:
        lut += (bh.to(gl.int64) * gl.num_programs(0) + block_m) * chosen

    keys = gl.allocate_shared_memory(gl.int8, [2, N, D], k.layout)
    values = gl.allocate_shared_memory(value_type, [2, D, N] if FP8 else [2, N, D], v.layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(2):
        mbarrier.init(k_ready.index(slot), count=1)
        mbarrier.init(v_ready.index(slot), count=1)
    fence_async_shared()
    thread_barrier()
    base = bh * blocks * N
    v_row = bh * D if FP8 else (bh // H) * LK
    v_column = head * D
    for slot in gl.static_range(2):
        block = block_at(lut, slot, chosen, SPARSE)
        fill(k, v, keys, values, k_ready, v_ready, slot, block, base, v_row, v_column, FP8, N, True, True, slot < chosen)

    rows = block_m * M + gl.arange(0, M, layout=gl.SliceLayout(1, ROWWISE))
    cols = gl.arange(0, D, layout=gl.SliceLayout(0, ROWWISE))
    inside = (rows < LQ)[:, None]
    source = q + batch * stride_qb + head * stride_qh + rows.to(gl.int64)[:, None] * stride_ql + cols[None, :]
    full = gl.load(source, mask=inside, other=0.0).to(gl.float32)
    amax = gl.maximum(gl.max(gl.abs(full), axis=1), FLOOR)
    query = gl.allocate_shared_memory(gl.int8, [M, D], gl.NVMMASharedLayout(128, 8, 2))
    query.store(nearest(full * (127.0 / amax)[:, None]))
    fence_async_shared()
    thread_barrier()
    factor = gl.convert_layout(amax * (softmax_scale / 127.0), gl.SliceLayout(1, S))

    zero_scores = gl.zeros([M, N], gl.int32, S)
    zero_update = gl.zeros([M, D], gl.float32, OUT)
    acc = gl.zeros([M, D], gl.float32, OUT)
    top = gl.full([M], float("-inf"), gl.float32, gl.SliceLayout(1, S))
    total = gl.zeros([M], gl.float32, gl.SliceLayout(1, S))

    block = block_at(lut, 0, chosen, SPARSE)
    scale = gl.load(k_scales + bh * blocks + block)
    mbarrier.wait(k_ready.index(0), 0)
    s = warpgroup_mma(query, keys.index(0).permute((1, 0)), zero_scores, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    thread_barrier()
    third = block_at(lut, 2, chosen, SPARSE)
    fill(k, v, keys, values, k_ready, v_ready, 0, third, base, v_row, v_column, FP8, N, True, False, chosen > 2)

    # Step j: the scores of block j + 1 are computed during the softmax of block j, then P V of block j.
    for step in range(chosen - 1):
        here = step & 1
        there = here ^ 1
        following = block_at(lut, step + 1, chosen, SPARSE)
        next_scale = gl.load(k_scales + bh * blocks + following)
        mbarrier.wait(k_ready.index(there), ((step + 1) >> 1) & 1)
        coming = warpgroup_mma(query, keys.index(there).permute((1, 0)), zero_scores, use_acc=False, is_async=True)
        p, fade, top, total = softmax_step(s, factor, scale, top, total, 0, LK, FP8, False, S, P)
        mbarrier.wait(v_ready.index(here), (step >> 1) & 1)
        if FP8:
            update = warpgroup_mma(p, values.index(here).permute((1, 0)), zero_update, use_acc=False, is_async=True)
        else:
            update = warpgroup_mma(p, values.index(here), faded(acc, fade, OUT), is_async=True)
        s, update = warpgroup_mma_wait(0, deps=[coming, update])
        acc = gl.fma(acc, spread(fade, acc, OUT), update) if FP8 else update
        thread_barrier()  # every warp has read these buffers
        beyond = block_at(lut, step + 3, chosen, SPARSE)
        fill(k, v, keys, values, k_ready, v_ready, there, beyond, base, v_row, v_column, FP8, N, True, False, step + 3 < chosen)
        beyond = block_at(lut, step + 2, chosen, SPARSE)
        fill(k, v, keys, values, k_ready, v_ready, here, beyond, base, v_row, v_column, FP8, N, False, True, step + 2 < chosen)
        block = following
        scale = next_scale

    # The last block is the only one that can reach past LK.
    p, fade, top, total = softmax_step(s, factor, scale, top, total, block * N, LK, FP8, True, S, P)
    here = (chosen - 1) & 1
    mbarrier.wait(v_ready.index(here), ((chosen - 1) >> 1) & 1)
    if FP8:
        update = warpgroup_mma(p, values.index(here).permute((1, 0)), zero_update, use_acc=False, is_async=True)
    else:
        update = warpgroup_mma(p, values.index(here), faded(acc, fade, OUT), is_async=True)
    update = warpgroup_mma_wait(0, deps=[update])
    acc = gl.fma(acc, spread(fade, acc, OUT), update) if FP8 else update
    thread_barrier()
    for slot in gl.static_range(2):
        mbarrier.invalidate(k_ready.index(slot))
        mbarrier.invalidate(v_ready.index(slot))

    y = acc * spread(1.0 / total, acc, OUT)
    kind: gl.constexpr = out.dtype.element_ty
    if FP8:
        channel = gl.arange(0, D, layout=gl.SliceLayout(0, OUT))
        y = y * gl.load(v_scales + bh * D + channel)[None, :].broadcast_to(M, D)
    result = gl.convert_layout(y.to(kind), ROWWISE)
    if LINEAR:
        # The compiler gives this buffer the memory of the keys, which are not needed any more.
        first = gl.allocate_shared_memory(kind, [D, D], gl.NVMMASharedLayout(128, 16, 2))
        along = gl.arange(0, D, layout=gl.SliceLayout(1, ROWWISE))
        square = along[:, None] * D + cols[None, :]
        first.store(gl.load(state + bh.to(gl.int64) * (D * D) + square))
        full = gl.load(source, mask=inside, other=0.0).to(gl.float32)
        power = full * 1.4426950408889634
        power = gl.exp2(power - gl.max(power, axis=1)[:, None])
        feature = power * (1.0 / gl.sum(power, axis=1))[:, None]
        norm = gl.sum(feature * gl.load(totals + bh * D + cols)[None, :], axis=1)
        left: gl.constexpr = gl.DotOperandLayout(0, HALF, 2)
        operand = gl.convert_layout(feature.to(kind), left)
        fence_async_shared()
        thread_barrier()
        zero = gl.zeros([M, D], gl.float32, HALF)
        mixed = warpgroup_mma(operand, first, zero, use_acc=False, is_async=True)
        mixed = warpgroup_mma_wait(0, deps=[mixed])
        operand = gl.convert_layout((mixed * spread(1.0 / (norm + 1e-5), mixed, HALF)).to(kind), left)
        thread_barrier()
        first.store(gl.load(proj + square))
        fence_async_shared()
        thread_barrier()
        line = warpgroup_mma(operand, first.permute((1, 0)), zero, use_acc=False, is_async=True)
        line = warpgroup_mma_wait(0, deps=[line])
        bias = gl.load(proj_bias + gl.arange(0, D, layout=gl.SliceLayout(0, HALF))).to(gl.float32)
        line = gl.convert_layout((line + bias[None, :].broadcast_to(M, D)).to(kind), ROWWISE)
        result = (result.to(gl.float32) + line.to(gl.float32)).to(kind)
    target = out + ((batch * LQ + rows)[:, None] * H + head) * D + cols[None, :]
    gl.store(target, result, mask=inside)


def layouts(fp8: bool) -> tuple[Any, Any]:
    """Shared-memory layouts of a block of keys and of values."""
    keys = gl.NVMMASharedLayout(128, 8, 2)
    return keys, keys if fp8 else gl.NVMMASharedLayout(128, 16, 2)


def suits(v: Tensor, ready: Prepared, rows: int) -> bool:
    """Whether the kernel can take this call: its sizes, int8 keys, and values that a descriptor can describe."""
    whole = ready.codes is not None and rows == ROWS and ready.rows == KEYS and v.shape[-1] == WIDTH
    return whole and (ready.v_codes is not None or (v.dtype == torch.bfloat16 and v.is_contiguous()))


def launch(
    q: Tensor, v: Tensor, ready: Prepared, *, lut: Tensor | None, proj: Tensor | None, proj_bias: Tensor | None
) -> Tensor:
    """Run the kernel on q [B, LQ, H, d]; `suits` must have said yes."""
    batch, lq, heads, d = q.shape
    assert ready.codes is not None
    out = torch.empty((batch, lq, heads, d), dtype=q.dtype, device=q.device)
    fp8 = ready.v_codes is not None
    k_layout, v_layout = layouts(fp8)
    keys = TensorDescriptor.from_tensor(ready.codes.view(-1, d), [KEYS, d], k_layout)
    if ready.v_codes is not None:
        values = TensorDescriptor.from_tensor(ready.v_codes.view(-1, ready.v_codes.shape[-1]), [d, KEYS], v_layout)
    else:
        values = TensorDescriptor.from_tensor(v.view(-1, heads * d), [KEYS, d], v_layout)
    chosen = ready.blocks if lut is None else lut.shape[-1]
    given = (ready.k_scales, ready.v_scales, lut, ready.state, ready.totals, proj, proj_bias)
    with on(q.device):
        hopper_attention_kernel[-(-lq // ROWS), batch * heads](
            q, keys, values, out, *(out if t is None else t for t in given), lq, v.shape[1], heads, ready.blocks, chosen,
            1.4426950408889634 * d**-0.5, *q.stride()[:3], ROWS, KEYS, d, fp8, lut is not None, ready.state is not None,
            FLOOR, num_warps=4,
        )  # fmt: skip
    return out
