"""Device functions of `attention_hopper`, in Gluon: quantising, one step of the softmax, loads by TMA."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

# Renamed after Triton 3.6.
thread_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier
load_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
store_tile = tma.async_store if hasattr(tma, "async_load") else tma.async_copy_shared_to_global

REINTERPRET = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))


@gluon.jit
def square_in(memory, descriptor, KIND: gl.constexpr, D: gl.constexpr):
    """The start of shared memory as a square [D, D] of KIND, in the descriptor's layout."""
    if REINTERPRET:
        square = memory.reinterpret(KIND, [D, D], descriptor.layout)
    else:
        square = memory._reinterpret(KIND, [D, D], descriptor.layout)
    return square


@gluon.jit
def nearest(x, unit):
    """x * unit in -127..127 to the nearest int8, ties to even: the sum with 1.5 * 2^23 has the integer in its low byte."""
    return gl.fma(x, unit, gl.full(x.shape, 12582912.0, gl.float32, x.type.layout)).to(gl.int32, bitcast=True).to(gl.int8)


@gluon.jit
def unnormalised_feature(x):
    """(power, size) with softmax of a row of x = power / size, power in 0..1: SLA's f, see `kv.feature_map`."""
    shift = gl.max(x, axis=1) * -1.4426950408889634
    log2e = gl.full(x.shape, 1.4426950408889634, gl.float32, x.type.layout)
    power = gl.exp2(gl.fma(x, log2e, shift[:, None].broadcast_to(x.shape[0], x.shape[1])))
    return power, gl.sum(power, axis=1)


@gluon.jit
def softmax_step(
    s, factor, scale, top, total, first, LK,
    FP8: gl.constexpr, TAIL: gl.constexpr, BIASED: gl.constexpr, S: gl.constexpr, P: gl.constexpr,
):  # fmt: skip
    """From int32 scores of a block that starts at key `first`: (p as left operand, fade of earlier sums, top, total).

    BIASED as in `attention.absorb`.
    """
    ROWS: gl.constexpr = s.shape[0]
    KEYS: gl.constexpr = s.shape[1]
    if BIASED:
        x = (s + 0x4B400000).to(gl.float32, bitcast=True)
    else:
        x = s.to(gl.float32)
    if TAIL:
        keys = first + gl.arange(0, KEYS, layout=gl.SliceLayout(0, S))
        x = gl.where((keys < LK)[None, :], x, float("-inf"))
    unit = factor * scale
    most = gl.max(x, axis=1)
    if BIASED:
        most = most - 12582912.0
    higher = gl.maximum(top, most * unit)
    shift = -higher
    if FP8:
        shift = 8.807354922057604 - higher  # p times 448; see `attention.absorb`
    if BIASED:
        shift = shift - 12582912.0 * unit
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
def place(tile, tiles_m, tiles_n, GROUP: gl.constexpr):
    """`common.tile_of` in Gluon: row and column of a tile when GROUP rows of tiles are walked together."""
    width = GROUP * tiles_n
    first = (tile // width) * GROUP
    rows = gl.minimum(tiles_m - first, GROUP)
    return first + (tile % width) % rows, (tile % width) // rows


@gluon.jit
def halves(x):
    """The left and the right half of the columns; no value changes its thread."""
    pair = x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1)
    return pair.split()


@gluon.jit
def smooth(x):
    """`common.gelu_tanh` in Gluon."""
    root = gl.rsqrt(1.0 + gl.exp2(x * (-2.302208198 - 0.1029432396 * x * x)))
    return x * root * root
