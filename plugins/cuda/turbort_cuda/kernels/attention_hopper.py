"""INT8 attention for Hopper in Gluon, where the order of products, softmax and loads is written down and not left to a compiler.

The same arithmetic as `attention.attention_kernel`: int8 scores, float32 softmax in base 2, e4m3 or 16-bit PV, dense or over a
list of key blocks with SLA's linear branch. One warpgroup takes 64 queries; two programs share a multiprocessor. In every step

    the scores of block j+1 are started; the softmax of block j runs while they are computed; P V of block j follows, which the
    other program's softmax hides; the buffers that became free are filled by TMA `stages` blocks ahead.

Of the 1,250 cycles that the Triton kernel takes for a block, the tensor cores need 490 and the softmax's instructions 560.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from turbort_cuda.kernels.common import FLOOR
from turbort_cuda.kernels.hopper_parts import (
    block_at,
    faded,
    fill,
    load_tile,
    nearest,
    softmax_step,
    spread,
    square_in,
    thread_barrier,
    unnormalised_feature,
)
from turbort_cuda.kernels.kv import Prepared
from turbort_cuda.launch import on

ROWS, KEYS, WIDTH = 64, 128, 128
"""Queries of a program, keys of a block, and the width of a head: the only sizes that this kernel has."""


@gluon.jit
def hopper_attention_kernel(
    q, k, v, out, k_scales, v_scales, lut, state, totals, proj_bias, LQ, LK, H, blocks, chosen, softmax_scale,
    stride_qb, stride_ql, stride_qh,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, FP8: gl.constexpr, SPARSE: gl.constexpr, LINEAR: gl.constexpr,
    STAGES: gl.constexpr, FLOOR: gl.constexpr, EARLY: gl.constexpr, BIASED: gl.constexpr,
):  # fmt: skip
    """M queries of one head; arguments as `attention.attention_kernel`, k and v as tensor descriptors.

    EARLY: state is a descriptor, too. It comes by TMA into the memory of the keys, and q is read again, while the last block's
    softmax is computed.
    """
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 32])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 32 if FP8 else 16])
    P: gl.constexpr = gl.DotOperandLayout(0, OUT, 4 if FP8 else 2)
    HALF: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    ROWWISE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    QUADS: gl.constexpr = gl.BlockedLayout([1, 16], [8, 4], [4, 1], [1, 0])  # a row in four threads: few shuffles for its sums
    value_type: gl.constexpr = gl.float8e4nv if FP8 else gl.bfloat16

    block_m = gl.program_id(0)
    bh = gl.program_id(1)
    batch = (bh // H).to(gl.int64)
    head = bh % H
    if SPARSE:
        lut += (bh.to(gl.int64) * gl.num_programs(0) + block_m) * chosen

    keys = gl.allocate_shared_memory(gl.int8, [STAGES, N, D], k.layout)
    values = gl.allocate_shared_memory(value_type, [STAGES, D, N] if FP8 else [STAGES, N, D], v.layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    square_ready = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(slot), count=1)
        mbarrier.init(v_ready.index(slot), count=1)
    mbarrier.init(square_ready.index(0), count=1)
    fence_async_shared()
    thread_barrier()
    base = bh * blocks * N
    v_row = bh * D if FP8 else (bh // H) * LK
    v_column = head * D
    for slot in gl.static_range(STAGES):
        block = block_at(lut, slot, chosen, SPARSE)
        fill(k, v, keys, values, k_ready, v_ready, slot, block, base, v_row, v_column, FP8, N, True, True, slot < chosen)

    rows = block_m * M + gl.arange(0, M, layout=gl.SliceLayout(1, QUADS))
    cols = gl.arange(0, D, layout=gl.SliceLayout(0, QUADS))
    inside = (rows < LQ)[:, None]
    source = q + batch * stride_qb + head * stride_qh + rows.to(gl.int64)[:, None] * stride_ql + cols[None, :]
    full = gl.load(source, mask=inside, other=0.0).to(gl.float32)
    amax = gl.maximum(gl.max(gl.abs(full), axis=1), FLOOR)
    query = gl.allocate_shared_memory(gl.int8, [M, D], gl.NVMMASharedLayout(128, 8, 2))
    query.store(nearest(full, (127.0 / amax)[:, None].broadcast_to(M, D)))
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
    late = block_at(lut, STAGES, chosen, SPARSE)
    fill(k, v, keys, values, k_ready, v_ready, 0, late, base, v_row, v_column, FP8, N, True, False, chosen > STAGES)

    # Step j: the scores of block j + 1 are computed during the softmax of block j, then P V of block j. Blocks are looked up a
    # step before they are needed, so that nothing waits for the list: j + 1 for its scale, `late` and `beyond` for the loads.
    following = block_at(lut, 1, chosen, SPARSE)
    beyond = block_at(lut, STAGES + 1, chosen, SPARSE)
    for step in range(chosen - 1):
        here = step % STAGES
        there = (step + 1) % STAGES
        next_scale = gl.load(k_scales + bh * blocks + following)
        second = block_at(lut, step + 2, chosen, SPARSE)
        farther = block_at(lut, step + STAGES + 2, chosen, SPARSE)
        mbarrier.wait(k_ready.index(there), (step + 1) // STAGES % 2)
        coming = warpgroup_mma(query, keys.index(there).permute((1, 0)), zero_scores, use_acc=False, is_async=True)
        p, fade, top, total = softmax_step(s, factor, scale, top, total, 0, LK, FP8, False, BIASED, S, P)
        mbarrier.wait(v_ready.index(here), step // STAGES % 2)
        if FP8:
            update = warpgroup_mma(p, values.index(here).permute((1, 0)), zero_update, use_acc=False, is_async=True)
        else:
            update = warpgroup_mma(p, values.index(here), faded(acc, fade, OUT), is_async=True)
        s, update = warpgroup_mma_wait(0, deps=[coming, update])
        acc = gl.fma(acc, spread(fade, acc, OUT), update) if FP8 else update
        thread_barrier()  # every warp has read these buffers
        more = step + STAGES < chosen
        still = step + STAGES + 1 < chosen
        fill(k, v, keys, values, k_ready, v_ready, there, beyond, base, v_row, v_column, FP8, N, True, False, still)
        fill(k, v, keys, values, k_ready, v_ready, here, late, base, v_row, v_column, FP8, N, False, True, more)
        block = following
        scale = next_scale
        following = second
        late = beyond
        beyond = farther

    kind: gl.constexpr = out.dtype.element_ty
    if EARLY:
        # Every product with keys is done, and no load of keys is under way.
        square = square_in(keys, state, kind, D)
        mbarrier.expect(square_ready.index(0), state.block_type.nbytes)
        load_tile(state, [bh * D, 0], square_ready.index(0), square)
        again = gl.load(source, mask=inside, other=0.0)

    # The last block is the only one that can reach past LK.
    p, fade, top, total = softmax_step(s, factor, scale, top, total, block * N, LK, FP8, True, BIASED, S, P)
    here = (chosen - 1) % STAGES
    mbarrier.wait(v_ready.index(here), (chosen - 1) // STAGES % 2)
    if FP8:
        update = warpgroup_mma(p, values.index(here).permute((1, 0)), zero_update, use_acc=False, is_async=True)
    else:
        update = warpgroup_mma(p, values.index(here), faded(acc, fade, OUT), is_async=True)
    update = warpgroup_mma_wait(0, deps=[update])
    acc = gl.fma(acc, spread(fade, acc, OUT), update) if FP8 else update
    thread_barrier()
    for slot in gl.static_range(STAGES):
        mbarrier.invalidate(k_ready.index(slot))
        mbarrier.invalidate(v_ready.index(slot))

    y = acc * spread(1.0 / total, acc, OUT)
    if FP8:
        channel = gl.arange(0, D, layout=gl.SliceLayout(0, OUT))
        y = y * gl.load(v_scales + bh * D + channel)[None, :].broadcast_to(M, D)
    if LINEAR:
        if not EARLY:
            # The compiler gives this buffer the memory of the keys and values, which are not needed any more.
            square = gl.allocate_shared_memory(kind, [D, D], gl.NVMMASharedLayout(128, 16, 2))
            along = gl.arange(0, D, layout=gl.SliceLayout(1, QUADS))
            square.store(gl.load(state + bh.to(gl.int64) * (D * D) + along[:, None] * D + cols[None, :]))
            again = gl.load(source, mask=inside, other=0.0)
        # f = power / size: the division is left to the end, where one by the norm is due anyway.
        power, size = unnormalised_feature(again.to(gl.float32))
        norm = gl.sum(power * gl.load(totals + bh * D + cols)[None, :], axis=1) + 1e-5 * size
        operand = gl.convert_layout(power.to(kind), gl.DotOperandLayout(0, HALF, 2))
        if EARLY:
            mbarrier.wait(square_ready.index(0), 0)
        else:
            fence_async_shared()
            thread_barrier()
        line = warpgroup_mma(operand, square, gl.zeros([M, D], gl.float32, HALF), use_acc=False, is_async=True)
        line = gl.convert_layout(warpgroup_mma_wait(0, deps=[line]), OUT, assert_trivial=True)
        bias = gl.load(proj_bias + gl.arange(0, D, layout=gl.SliceLayout(0, OUT))).to(gl.float32)
        y = gl.fma(line, spread(1.0 / norm, line, OUT), y + bias[None, :].broadcast_to(M, D))
    lines = block_m * M + gl.arange(0, M, layout=gl.SliceLayout(1, ROWWISE))
    channels = gl.arange(0, D, layout=gl.SliceLayout(0, ROWWISE))
    target = out + ((batch * LQ + lines)[:, None] * H + head) * D + channels[None, :]
    gl.store(target, gl.convert_layout(y.to(kind), ROWWISE), mask=(lines < LQ)[:, None])


def layouts(fp8: bool) -> tuple[Any, Any]:
    """Shared-memory layouts of a block of keys and of values."""
    keys = gl.NVMMASharedLayout(128, 8, 2)
    return keys, keys if fp8 else gl.NVMMASharedLayout(128, 16, 2)


def suits(v: Tensor, ready: Prepared, rows: int) -> bool:
    """Whether the kernel can take this call: its sizes, int8 keys, and values that a descriptor can describe."""
    if ready.codes is None or rows != ROWS or ready.rows != KEYS or v.shape[-1] != WIDTH:
        return False
    if ready.v_codes is not None:
        return True
    # A tile of v that reaches past the end shows the next batch entry, whose NaN or infinity would survive a weight of 0.
    apart = v.shape[0] == 1 or v.shape[1] % KEYS == 0
    return apart and v.dtype == torch.bfloat16 and v.is_contiguous()


def launch(
    q: Tensor,
    v: Tensor,
    ready: Prepared,
    config: Mapping[str, Any],
    *,
    lut: Tensor | None,
    proj_bias: Tensor | None,
) -> Tensor:
    """Run the kernel on q [B, LQ, H, d]; `suits` must have said yes. `early` in the configuration concerns the linear branch."""
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
    linear = ready.state is not None
    state: Any = ready.state
    early = bool(config.get("early")) and linear
    if early:
        state = TensorDescriptor.from_tensor(state.view(-1, d), [d, d], layouts(False)[1])
    given = (ready.k_scales, ready.v_scales, lut, state, ready.totals, proj_bias)
    with on(q.device):
        hopper_attention_kernel[-(-lq // ROWS), batch * heads](
            q, keys, values, out, *(out if t is None else t for t in given), lq, v.shape[1], heads, ready.blocks, chosen,
            1.4426950408889634 * d**-0.5, *q.stride()[:3], ROWS, KEYS, d, fp8, lut is not None, linear,
            config["stages"], FLOOR, early, bool(config.get("biased")), num_warps=4,
        )  # fmt: skip
    return out
