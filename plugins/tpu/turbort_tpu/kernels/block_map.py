"""Which key blocks each query block attends to: the reference's choice, sum for sum, in JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from turbort_tpu.kernels.common import interpret, pad_to, parameters


def block_map(q: Array, k: Array, topk: float, block: tuple[int, int]) -> Array:
    """int32 [B, H, nq, kk], ascending; see `turbort.ops.block_map.block_map` for the rule.

    Sums are the same pairwise additions as there and `lax.top_k` prefers the lower index, so both agree wherever two
    scores are not within the rounding of the final dot product.
    """
    scores = _pooled_scores(q, k, block)
    count = max(1, min(scores.shape[-1], int(topk * scores.shape[-1])))
    return jnp.sort(jax.lax.top_k(scores, count)[1], axis=-1).astype(jnp.int32)


def _pooled_scores(q: Array, k: Array, block: tuple[int, int]) -> Array:
    """float32 [B, H, nq, nk]. Sums run over [B, n, size, H * d]: a head is a span of lanes, which tiles well."""
    heads = q.shape[2]
    q_sums, q_counts = _block_sums(q, block[0])
    k_sums, k_counts = _block_sums(k, block[1])
    mean = _tree_sum(k_sums, 1) / k.shape[1]
    q_pool, k_pool = (
        x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q_sums / q_counts, k_sums / k_counts - mean[:, None])
    )
    return jnp.einsum("bhqd,bhkd->bhqk", q_pool, k_pool, precision=jax.lax.Precision.HIGHEST)


def _block_sums(x: Array, size: int) -> tuple[Array, Array]:
    """Sums [B, n, H * d] over blocks of `size` tokens in one pass over memory, and the real length of each block [n, 1]."""
    batch, length = x.shape[:2]
    flat = x.reshape(batch, length, -1)
    width, blocks = flat.shape[2], -(-length // size)

    def kernel(x_ref: Any, out_ref: Any) -> None:
        row = pl.program_id(1) * size + jax.lax.broadcasted_iota(jnp.int32, (size, width), 0)
        out_ref[0, 0] = _tree_sum(jnp.where(row < length, x_ref[0].astype(jnp.float32), 0.0), 0, keep=True)

    sums = pl.pallas_call(
        kernel,
        grid=(batch, blocks),
        in_specs=[pl.BlockSpec((1, size, width), lambda b, i: (b, i, 0))],
        out_specs=pl.BlockSpec((1, 1, 1, width), lambda b, i: (b, i, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((batch, blocks, 1, width), jnp.float32),
        compiler_params=parameters("parallel", "parallel"),
        cost_estimate=pl.CostEstimate(flops=flat.size, transcendentals=0, bytes_accessed=flat.size * flat.dtype.itemsize),
        interpret=interpret(),
        name="block_sums",
    )(pad_to(flat, 1, blocks * size) if length < size else flat)
    counts = jnp.minimum(length - jnp.arange(blocks) * size, size).astype(jnp.float32)
    return sums[:, :, 0], counts[:, None]


def _tree_sum(x: Array, axis: int, keep: bool = False) -> Array:
    """The upper half added to the lower half until one is left; the middle of an odd count waits."""
    count = x.shape[axis]
    while count > 1:
        half = (count + 1) // 2
        lower = jax.lax.slice_in_dim(x, 0, half, axis=axis)
        upper = jax.lax.slice_in_dim(x, half, count, axis=axis)
        if count % 2:
            middle = jax.lax.slice_in_dim(lower, half - 1, half, axis=axis)
            lower = jax.lax.slice_in_dim(lower, 0, half - 1, axis=axis)
            x = jnp.concatenate((lower + upper, middle), axis=axis)
        else:
            x = lower + upper
        count = half
    return x if keep else jnp.squeeze(x, axis)
