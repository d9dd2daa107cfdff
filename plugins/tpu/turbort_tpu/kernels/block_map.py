"""Which key blocks each query block attends to: the reference's choice, sum for sum, in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from turbort_tpu.kernels.common import pad_to, up


def block_map(q: Array, k: Array, topk: float, block: tuple[int, int]) -> Array:
    """int32 [B, H, nq, kk], ascending; see `turbort.ops.block_map.block_map` for the rule.

    Sums are the same pairwise additions as there and `lax.top_k` prefers the lower index, so both agree wherever two
    scores are not within the rounding of the final dot product.
    """
    scores = _pooled_scores(q, k, block)
    count = max(1, min(scores.shape[-1], int(topk * scores.shape[-1])))
    return jnp.sort(jax.lax.top_k(scores, count)[1], axis=-1).astype(jnp.int32)


def _pooled_scores(q: Array, k: Array, block: tuple[int, int]) -> Array:
    q_sums, q_counts = _block_sums(q.astype(jnp.float32), block[0])
    k_sums, k_counts = _block_sums(k.astype(jnp.float32), block[1])
    mean = _tree_sum(k_sums, 1) / k.shape[1]
    q_pool, k_pool = q_sums / q_counts, k_sums / k_counts - mean[:, None]
    return jnp.einsum("bqhd,bkhd->bhqk", q_pool, k_pool, precision=jax.lax.Precision.HIGHEST)


def _block_sums(x: Array, size: int) -> tuple[Array, Array]:
    batch, length, heads, d = x.shape
    padded = pad_to(x, 1, up(length, size)).reshape(batch, -1, size, heads, d)
    counts = jnp.minimum(length - jnp.arange(padded.shape[1]) * size, size).astype(x.dtype)
    return _tree_sum(padded, 2), counts[:, None, None]


def _tree_sum(x: Array, axis: int) -> Array:
    """The upper half added to the lower half until one is left; a middle element waits."""
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
    return jnp.squeeze(x, axis)
