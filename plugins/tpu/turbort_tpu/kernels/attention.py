"""Dense softmax attention that never stores scores: bfloat16, or INT8 QK with SageAttention's scales."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from turbort_tpu.kernels.common import LANES, MASKED, ROW_FLOOR, interpret, pad_to, parameters, up

Q_ROWS = 128
K_ROWS = 64
BLOCK = 512


def attention(q: Array, k: Array, v: Array, *, int8: bool, block: int = BLOCK) -> Array:
    """softmax(q k^T / sqrt(d)) v; q [B, Lq, H, d], k and v [B, Lk, H, d]; returns q's shape.

    `int8`: k minus its token mean, q and k in int8 with one scale per 128 and 64 rows, scores exact int32 sums.
    Scores live in blocks of `block` x `block`; keys beyond Lk are masked in the last block only. A head that does not
    fill its lanes is padded with zeros, which change no score.
    """
    batch, lq, heads, real = q.shape
    lk = k.shape[1]
    d = up(real, LANES)
    q, k, v = (pad_to(x, 3, d) for x in (q, k, v))
    bq, bk = min(block, up(lq, Q_ROWS)), min(block, up(lk, LANES))
    rows, keys = up(lq, bq), up(lk, bk)
    values = _flat(pad_to(v, 1, keys))
    if int8:
        # The factor of the softmax goes into the scale of q, which is multiplied in anyway.
        qc, qs = encode_blocks(pad_to(q, 1, rows).astype(jnp.float32), Q_ROWS)
        kc, ks = encode_blocks(pad_to(smooth(k), 1, keys), K_ROWS)
        operands = [_flat(qc), _flat(kc), values, qs * real**-0.5, ks.swapaxes(2, 3)]
    else:
        operands = [_flat(pad_to(q, 1, rows)), _flat(pad_to(k, 1, keys)), values]
    tile = pl.BlockSpec((1, bq, d), lambda b, h, i, j: (b, i, h))
    key = pl.BlockSpec((1, bk, d), lambda b, h, i, j: (b, j, h))
    specs = [tile, key, key]
    if int8:
        specs.append(pl.BlockSpec((1, 1, bq, 1), lambda b, h, i, j: (b, h, i, 0)))
        specs.append(pl.BlockSpec((1, 1, 1, bk), lambda b, h, i, j: (b, h, 0, j)))
    body = functools.partial(_body, int8=int8, steps=keys // bk, keys=lk, bk=bk, ragged=keys != lk, scale=real**-0.5)
    size = 1 if int8 else 2
    out = pl.pallas_call(
        body,
        grid=(batch, heads, rows // bq, keys // bk),
        in_specs=specs,
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct((batch, rows, heads * d), q.dtype),
        scratch_shapes=[
            pltpu.VMEM((bq, LANES), jnp.float32),
            pltpu.VMEM((bq, LANES), jnp.float32),
            pltpu.VMEM((bq, d), jnp.float32),
        ],
        compiler_params=parameters("parallel", "parallel", "parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * heads * rows * keys * d,
            transcendentals=batch * heads * rows * keys,
            bytes_accessed=batch * heads * d * (rows * (size + 2) + (rows // bq) * keys * (size + 2)),
        ),
        interpret=interpret(),
        name="attention_int8" if int8 else "attention",
    )(*operands)
    return out[:, :lq].reshape(batch, lq, heads, d)[..., :real]


def smooth(k: Array) -> Array:
    """k minus its mean over tokens, float32, which softmax cannot see; k [B, L, H, d]."""
    full = k.astype(jnp.float32)
    return full - jnp.mean(full, axis=1, keepdims=True)


def encode_blocks(x: Array, rows: int) -> tuple[Array, Array]:
    """int8 codes [B, L, H, d] and scales per row [B, H, L, 1], shared by blocks of `rows`; L a multiple of `rows`.

    scale = max(amax |block|, 1e-8) / 127; zero rows appended as padding change no scale.
    """
    batch, length, heads, d = x.shape
    blocks = x.reshape(batch, length // rows, rows, heads, d)
    scale = jnp.maximum(jnp.max(jnp.abs(blocks), axis=(2, 4), keepdims=True), ROW_FLOOR) / 127.0
    codes = jnp.clip(jnp.round(blocks / scale), -127, 127).astype(jnp.int8).reshape(x.shape)
    per_row = jnp.broadcast_to(scale, (batch, length // rows, rows, heads, 1)).reshape(batch, length, heads, 1)
    return codes, per_row.transpose(0, 2, 1, 3)


def _flat(x: Array) -> Array:
    """[B, L, H, d] as [B, L, H * d]: a head is a span of lanes, so no transpose is needed."""
    return x.reshape(x.shape[0], x.shape[1], -1)


def _body(
    q_ref: Any, k_ref: Any, v_ref: Any, *rest: Any, int8: bool, steps: int, keys: int, bk: int, ragged: bool, scale: float
) -> None:
    scales, (out_ref, m_ref, l_ref, acc_ref) = rest[:-4], rest[-4:]
    step = pl.program_id(3)
    start_softmax(step == 0, m_ref, l_ref, acc_ref)
    accumulate = jnp.int32 if int8 else jnp.float32
    scores = jax.lax.dot_general(q_ref[0], k_ref[0], (((1,), (1,)), ((), ())), preferred_element_type=accumulate)
    if int8:
        scores = scores.astype(jnp.float32) * (scales[0][0, 0] * scales[1][0, 0])
    else:
        scores = scores * scale
    if ragged:
        column = step * bk + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where(column < keys, scores, MASKED)
    online_softmax(scores, v_ref[0], m_ref, l_ref, acc_ref)

    @pl.when(step == steps - 1)
    def _last() -> None:
        out_ref[0] = (acc_ref[...] / l_ref[:, :1]).astype(out_ref.dtype)


def start_softmax(first: Any, m_ref: Any, l_ref: Any, acc_ref: Any) -> None:
    """Clear the running maximum, sum and weighted values."""

    @pl.when(first)
    def _first() -> None:
        m_ref[...] = jnp.full_like(m_ref, MASKED)
        l_ref[...] = jnp.zeros_like(l_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)


def online_softmax(scores: Array, values: Array, m_ref: Any, l_ref: Any, acc_ref: Any) -> None:
    """Add one block of keys: float32 softmax, P rounded to the dtype of the values before the product."""
    before = m_ref[...]
    now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
    p = jnp.exp(scores - now[:, :1])
    shrink = jnp.exp(before - now)
    l_ref[...] = shrink * l_ref[...] + jnp.sum(p, axis=1, keepdims=True)
    added = jax.lax.dot_general(p.astype(values.dtype), values, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    acc_ref[...] = acc_ref[...] * shrink[:, :1] + added
    m_ref[...] = now
