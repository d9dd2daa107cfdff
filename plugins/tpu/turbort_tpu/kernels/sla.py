"""Sparse-linear attention: a sparse branch over a prefetched table of key blocks, the linear branch in its epilogue."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from turbort_tpu.kernels.attention import encode_blocks, online_softmax, smooth, start_softmax
from turbort_tpu.kernels.block_map import block_map
from turbort_tpu.kernels.common import LANES, MASKED, interpret, pad_to, parameters, up

EPS = 1e-5
TOGETHER = 4
"""Key blocks per grid step: their copies from HBM overlap, and a step's fixed cost is paid once."""


def sla_attention(
    q: Array, k: Array, v: Array, weight: Array, bias: Array, *, topk: float, block: tuple[int, int], int8: bool
) -> Array:
    """Softmax attention over the chosen key blocks + (linear attention over all keys) W^T + b.

    q [B, Lq, H, d], k and v [B, Lk, H, d]; weight [d, d], bias [d]; returns q's shape. See `turbort.ops.sla` for the
    formulas. The scalar memory of a core holds the table of one head (nq * kk int32, 51 kB at 480p, 279 kB at 720p), so
    heads follow each other in a loop.
    """
    batch, lq, heads, d = q.shape
    table = block_map(q, k, topk, block)
    q_pad, k_pad = up(lq, block[0]), up(k.shape[1], block[1])
    fk = jax.nn.softmax(k.astype(jnp.float32), axis=-1)
    total = jnp.sum(fk, axis=1)[:, :, None]
    kv = jnp.einsum("blhd,blhe->bhde", fk.astype(v.dtype), v, preferred_element_type=jnp.float32)
    queries = pad_to(q, 1, q_pad)
    shared = [queries, kv.astype(v.dtype), total, weight.astype(v.dtype), bias.astype(jnp.float32).reshape(1, d)]
    if int8:
        qc, qs = encode_blocks(queries.astype(jnp.float32), block[0])
        kc, ks = encode_blocks(pad_to(smooth(k), 1, k_pad), block[1])
        scores = [qc, kc, qs * d**-0.5, ks.swapaxes(2, 3)]
    else:
        scores = [queries, pad_to(k, 1, k_pad)]
    run = functools.partial(
        _one_head, shared=shared, scores=scores, values=pad_to(v, 1, k_pad), block=block, keys=k.shape[1], int8=int8
    )
    where = jnp.stack(jnp.meshgrid(jnp.arange(batch), jnp.arange(heads), indexing="ij"), axis=-1).reshape(-1, 2)
    out = jax.lax.map(lambda item: run(*item), (where.astype(jnp.int32), table.reshape(batch * heads, *table.shape[2:])))
    return out.reshape(batch, heads, q_pad, d)[:, :, :lq].transpose(0, 2, 1, 3)


def _one_head(
    where: Array,
    table: Array,
    *,
    shared: list[Array],
    scores: list[Array],
    values: Array,
    block: tuple[int, int],
    keys: int,
    int8: bool,
) -> Array:
    """[Lq, d] of the head `where` = (batch, head) whose chosen blocks are `table` [nq, kk]."""
    queries = shared[0]
    rows, d = queries.shape[1], queries.shape[3]
    nq, kk = table.shape
    together = min(TOGETHER, kk)
    steps = -(-kk // together)
    flat = pad_to(table, 1, steps * together).reshape(-1)
    width = steps * together

    def row(i: Any, j: Any, at: Any, t: Any) -> Any:
        return at[0], i, at[1]

    def chosen(part: int) -> Any:
        return lambda i, j, at, t: (at[0], t[i * width + j * together + part], at[1])

    def chosen_scale(part: int) -> Any:
        return lambda i, j, at, t: (at[0], at[1], 0, t[i * width + j * together + part])

    def fixed(i: Any, j: Any, at: Any, t: Any) -> Any:
        return at[0], at[1], 0, 0

    parts = range(together)
    flattened = [t.reshape(*t.shape[:2], -1) for t in (queries, *scores[:2], values)]
    operands = [flattened[0], *shared[1:], flattened[1]]
    specs = [
        pl.BlockSpec((1, block[0], d), row),
        pl.BlockSpec((1, 1, d, d), fixed),
        pl.BlockSpec((1, 1, 1, d), fixed),
        pl.BlockSpec((d, d), lambda i, j, at, t: (0, 0)),
        pl.BlockSpec((1, d), lambda i, j, at, t: (0, 0)),
        pl.BlockSpec((1, block[0], d), row),
    ]
    for source in flattened[2:]:
        operands += [source] * together
        specs += [pl.BlockSpec((1, block[1], d), chosen(part)) for part in parts]
    if int8:
        operands += [scores[2]] + [scores[3]] * together
        specs.append(pl.BlockSpec((1, 1, block[0], 1), lambda i, j, at, t: (at[0], at[1], i, 0)))
        specs += [pl.BlockSpec((1, 1, 1, block[1]), chosen_scale(part)) for part in parts]
    body = functools.partial(_body, int8=int8, together=together, width=width, kk=kk, keys=keys, block=block, scale=d**-0.5)
    code = 1 if int8 else 2
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(nq, steps),
            in_specs=specs,
            out_specs=pl.BlockSpec((block[0], d), lambda i, j, at, t: (i, 0)),
            scratch_shapes=[
                pltpu.VMEM((block[0], LANES), jnp.float32),
                pltpu.VMEM((block[0], LANES), jnp.float32),
                pltpu.VMEM((block[0], d), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((rows, d), queries.dtype),
        compiler_params=parameters("parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=4 * rows * kk * block[1] * d + 4 * rows * d * d,
            transcendentals=rows * (kk * block[1] + d),
            bytes_accessed=rows * d * (4 + code) + nq * kk * block[1] * d * (2 + code),
        ),
        interpret=interpret(),
        name="sla_int8" if int8 else "sla",
    )(where, flat, *operands)


def _body(
    at_ref: Any, table_ref: Any, q_ref: Any, kv_ref: Any, total_ref: Any, w_ref: Any, b_ref: Any, codes_ref: Any, *rest: Any,
    int8: bool, together: int, width: int, kk: int, keys: int, block: tuple[int, int], scale: float,
) -> None:  # fmt: skip
    key_refs, value_refs = rest[:together], rest[together : 2 * together]
    scale_refs, (out_ref, m_ref, l_ref, acc_ref) = rest[2 * together : -4], rest[-4:]
    i, j = pl.program_id(0), pl.program_id(1)
    start_softmax(j == 0, m_ref, l_ref, acc_ref)
    accumulate = jnp.int32 if int8 else jnp.float32
    for part in range(together):
        s = jax.lax.dot_general(codes_ref[0], key_refs[part][0], (((1,), (1,)), ((), ())), preferred_element_type=accumulate)
        s = s.astype(jnp.float32) * (scale_refs[0][0, 0] * scale_refs[1 + part][0, 0]) if int8 else s * scale
        place = j * together + part
        chosen = table_ref[i * width + place]
        column = chosen * block[1] + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
        if kk % together:
            # Places beyond kk repeat block 0; moving their columns behind the last key masks them like padding.
            column = column + jnp.where(place < kk, 0, keys)
        if kk % together or keys % block[1]:
            s = jnp.where(column < keys, s, MASKED)
        online_softmax(s, value_refs[part][0], m_ref, l_ref, acc_ref)

    @pl.when(j == width // together - 1)
    def _last() -> None:
        sparse = acc_ref[...] / l_ref[:, :1]
        out_ref[...] = (sparse + _linear_branch(q_ref[0], kv_ref[0, 0], total_ref[0, 0], w_ref[...], b_ref[...])).astype(
            out_ref.dtype
        )


def _linear_branch(q: Array, kv: Array, total: Array, weight: Array, bias: Array) -> Array:
    """(f(q) kv / (1e-5 + f(q) . total)) W^T + b for a tile of queries, f = softmax over the head."""
    full = q.astype(jnp.float32)
    e = jnp.exp(full - jnp.max(full, axis=-1, keepdims=True))
    fq = e / jnp.sum(e, axis=-1, keepdims=True)
    up_ = jax.lax.dot_general(fq.astype(kv.dtype), kv, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    linear = up_ / (EPS + jnp.sum(fq * total, axis=-1, keepdims=True))
    projected = jax.lax.dot_general(
        linear.astype(weight.dtype), weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return projected + bias
