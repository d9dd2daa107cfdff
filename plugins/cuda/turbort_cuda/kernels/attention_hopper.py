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
from turbort_cuda.kernels.hopper_parts import block_at, faded, fill, load_tile, nearest, softmax_step, spread, thread_barrier
from turbort_cuda.kernels.kv import Prepared
from turbort_cuda.launch import on

ROWS, KEYS, WIDTH = 64, 128, 128
"""Queries of a program, keys of a block, and the width of a head: the only sizes that this kernel has."""


@gluon.jit
def hopper_attention_kernel(
    q, k, v, out, k_scales, v_scales, lut, state, totals, proj, proj_bias, LQ, LK, H, blocks, chosen, softmax_scale,
    stride_qb, stride_ql, stride_qh,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, FP8: gl.constexpr, SPARSE: gl.constexpr, LINEAR: gl.constexpr,
    STAGES: gl.constexpr, FLOOR: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """M queries of one head; arguments as `attention.attention_kernel`, k and v as tensor descriptors.

    EARLY: state and proj are descriptors, too, and come by TMA while the linear branch's features are computed.
    """
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

    keys = gl.allocate_shared_memory(gl.int8, [STAGES, N, D], k.layout)
    values = gl.allocate_shared_memory(value_type, [STAGES, D, N] if FP8 else [STAGES, N, D], v.layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    squares_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(slot), count=1)
        mbarrier.init(v_ready.index(slot), count=1)
    for slot in gl.static_range(2):
        mbarrier.init(squares_ready.index(slot), count=1)
    fence_async_shared()
    thread_barrier()
    base = bh * blocks * N
    v_row = bh * D if FP8 else (bh // H) * LK
    v_column = head * D
    for slot in gl.static_range(STAGES):
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
    beyond = block_at(lut, STAGES, chosen, SPARSE)
    fill(k, v, keys, values, k_ready, v_ready, 0, beyond, base, v_row, v_column, FP8, N, True, False, chosen > STAGES)

    # Step j: the scores of block j + 1 are computed during the softmax of block j, then P V of block j.
    for step in range(chosen - 1):
        here = step % STAGES
        there = (step + 1) % STAGES
        following = block_at(lut, step + 1, chosen, SPARSE)
        next_scale = gl.load(k_scales + bh * blocks + following)
        mbarrier.wait(k_ready.index(there), (step + 1) // STAGES % 2)
        coming = warpgroup_mma(query, keys.index(there).permute((1, 0)), zero_scores, use_acc=False, is_async=True)
        p, fade, top, total = softmax_step(s, factor, scale, top, total, 0, LK, FP8, False, S, P)
        mbarrier.wait(v_ready.index(here), step // STAGES % 2)
        if FP8:
            update = warpgroup_mma(p, values.index(here).permute((1, 0)), zero_update, use_acc=False, is_async=True)
        else:
            update = warpgroup_mma(p, values.index(here), faded(acc, fade, OUT), is_async=True)
        s, update = warpgroup_mma_wait(0, deps=[coming, update])
        acc = gl.fma(acc, spread(fade, acc, OUT), update) if FP8 else update
        thread_barrier()  # every warp has read these buffers
        late = step + STAGES
        beyond = block_at(lut, late + 1, chosen, SPARSE)
        fill(k, v, keys, values, k_ready, v_ready, there, beyond, base, v_row, v_column, FP8, N, True, False, late + 1 < chosen)
        beyond = block_at(lut, late, chosen, SPARSE)
        fill(k, v, keys, values, k_ready, v_ready, here, beyond, base, v_row, v_column, FP8, N, False, True, late < chosen)
        block = following
        scale = next_scale

    # The last block is the only one that can reach past LK.
    p, fade, top, total = softmax_step(s, factor, scale, top, total, block * N, LK, FP8, True, S, P)
    here = (chosen - 1) % STAGES
    mbarrier.wait(v_ready.index(here), (chosen - 1) // STAGES % 2)
    if FP8:
        update = warpgroup_mma(p, values.index(here).permute((1, 0)), zero_update, use_acc=False, is_async=True)
    else:
        update = warpgroup_mma(p, values.index(here), faded(acc, fade, OUT), is_async=True)
    update = warpgroup_mma_wait(0, deps=[update])
    acc = gl.fma(acc, spread(fade, acc, OUT), update) if FP8 else update
    if EARLY:
        fence_async_shared()  # the compiler may put the squares where threads wrote, which a barrier does not order with TMA
    thread_barrier()
    for slot in gl.static_range(STAGES):
        mbarrier.invalidate(k_ready.index(slot))
        mbarrier.invalidate(v_ready.index(slot))
    if EARLY:
        # The compiler gives these buffers the memory of the keys and values, which are not needed any more.
        first = gl.allocate_shared_memory(gl.bfloat16, [D, D], state.layout)
        second = gl.allocate_shared_memory(gl.bfloat16, [D, D], proj.layout)
        mbarrier.expect(squares_ready.index(0), state.block_type.nbytes)
        load_tile(state, [bh * D, 0], squares_ready.index(0), first)
        mbarrier.expect(squares_ready.index(1), proj.block_type.nbytes)
        load_tile(proj, [0, 0], squares_ready.index(1), second)

    y = acc * spread(1.0 / total, acc, OUT)
    kind: gl.constexpr = out.dtype.element_ty
    if FP8:
        channel = gl.arange(0, D, layout=gl.SliceLayout(0, OUT))
        y = y * gl.load(v_scales + bh * D + channel)[None, :].broadcast_to(M, D)
    result = gl.convert_layout(y.to(kind), ROWWISE)
    if LINEAR:
        along = gl.arange(0, D, layout=gl.SliceLayout(1, ROWWISE))
        square = along[:, None] * D + cols[None, :]
        if not EARLY:
            # As above.
            first = gl.allocate_shared_memory(kind, [D, D], gl.NVMMASharedLayout(128, 16, 2))
            second = first
            first.store(gl.load(state + bh.to(gl.int64) * (D * D) + square))
        full = gl.load(source, mask=inside, other=0.0).to(gl.float32)
        power = full * 1.4426950408889634
        power = gl.exp2(power - gl.max(power, axis=1)[:, None])
        feature = power * (1.0 / gl.sum(power, axis=1))[:, None]
        norm = gl.sum(feature * gl.load(totals + bh * D + cols)[None, :], axis=1)
        left: gl.constexpr = gl.DotOperandLayout(0, HALF, 2)
        operand = gl.convert_layout(feature.to(kind), left)
        if EARLY:
            mbarrier.wait(squares_ready.index(0), 0)
        else:
            fence_async_shared()
            thread_barrier()
        zero = gl.zeros([M, D], gl.float32, HALF)
        mixed = warpgroup_mma(operand, first, zero, use_acc=False, is_async=True)
        mixed = warpgroup_mma_wait(0, deps=[mixed])
        operand = gl.convert_layout((mixed * spread(1.0 / (norm + 1e-5), mixed, HALF)).to(kind), left)
        if EARLY:
            mbarrier.wait(squares_ready.index(1), 0)
        else:
            thread_barrier()
            first.store(gl.load(proj + square))
            fence_async_shared()
            thread_barrier()
        line = warpgroup_mma(operand, second.permute((1, 0)), zero, use_acc=False, is_async=True)
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
    proj: Tensor | None,
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
    state, weight = ready.state, proj
    early = bool(config.get("early")) and state is not None and weight is not None and q.dtype == torch.bfloat16
    squares: tuple[Any, Any] = (state, weight)
    if early:
        square = layouts(False)[1]
        squares = tuple(TensorDescriptor.from_tensor(t.view(-1, d), [d, d], square) for t in (state, weight) if t is not None)
    given = (ready.k_scales, ready.v_scales, lut, squares[0], ready.totals, squares[1], proj_bias)
    with on(q.device):
        hopper_attention_kernel[-(-lq // ROWS), batch * heads](
            q, keys, values, out, *(out if t is None else t for t in given), lq, v.shape[1], heads, ready.blocks, chosen,
            1.4426950408889634 * d**-0.5, *q.stride()[:3], ROWS, KEYS, d, fp8, lut is not None, state is not None,
            config["stages"], FLOOR, early, num_warps=4,
        )  # fmt: skip
    return out
