"""RMSNorm of queries or keys and rotary embedding of interleaved pairs, in one pass.

The pairs (2i, 2i+1) are rotated where they lie: y = x * c + swap(x) * s with swap exchanging the two lanes of a pair,
which is two lane rotations and a select. Weights and checkpoints keep their order (docs/adr/0012-tpu-executor.md).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from turbort_tpu.kernels.common import interpret, parameters, rows_block

ROWS = 128


def norm_rope(x: Array, weight: Array, cos: Array, sin: Array, *, heads: int, eps: float) -> Array:
    """y[2i] = n[2i] cos_i - n[2i+1] sin_i, y[2i+1] = n[2i] sin_i + n[2i+1] cos_i with n = rms_norm(x) * weight.

    x [B, L, D]; weight [D]; cos, sin float32 [L, d/2] or [B, L, d/2], d = D / heads a multiple of 128 lanes. Returns
    [B, L, D] in x's dtype.
    """
    batch, length, width = x.shape
    d = width // heads
    cos, sin = (t if t.ndim == 3 else t[None] for t in (cos, sin))
    own = cos.shape[0] > 1
    # One value per lane: the sign of the sine alternates, so the kernel needs no arithmetic on pairs.
    c = jnp.repeat(cos.astype(jnp.float32), 2, axis=-1)
    s = jnp.stack((-sin, sin), axis=-1).astype(jnp.float32).reshape(c.shape)
    block = rows_block(length, ROWS)
    row = pl.BlockSpec((1, block, width), lambda b, i: (b, i, 0))
    table = pl.BlockSpec((1, block, d), lambda b, i: (b if own else 0, i, 0))

    def kernel(x_ref: Any, w_ref: Any, c_ref: Any, s_ref: Any, out_ref: Any) -> None:
        full = x_ref[0].astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(full * full, axis=-1, keepdims=True) + eps)
        even = jax.lax.broadcasted_iota(jnp.int32, (block, d), 1) % 2 == 0
        for head in range(heads):
            span = slice(head * d, (head + 1) * d)
            n = full[:, span] * inverse * w_ref[:, span].astype(jnp.float32)
            swapped = jnp.where(even, pltpu.roll(n, d - 1, 1), pltpu.roll(n, 1, 1))
            out_ref[0, :, span] = (n * c_ref[0] + swapped * s_ref[0]).astype(out_ref.dtype)

    return pl.pallas_call(
        kernel,
        grid=(batch, pl.cdiv(length, block)),
        in_specs=[row, pl.BlockSpec((1, width), lambda b, i: (0, 0)), table, table],
        out_specs=row,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=parameters("parallel", "parallel"),
        cost_estimate=pl.CostEstimate(
            flops=8 * x.size, transcendentals=batch * length, bytes_accessed=2 * x.size * x.dtype.itemsize + 2 * length * d * 4
        ),
        interpret=interpret(),
        name="norm_rope",
    )(x, weight.reshape(1, width), c, s)
