"""Dense attention over several chips: tokens are spread over the mesh, and for the attention itself the heads are.

Each chip holds L / n tokens of all heads. Two all-to-alls turn that into all tokens of H / n heads and back, so every chip
runs the single-chip kernel on whole sequences (DeepSpeed-Ulysses, arXiv 2309.14509).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec

from turbort.errors import InputError
from turbort_tpu.kernels.attention import attention

AXIS = "chips"
TOKENS = PartitionSpec(None, AXIS)


def spread_attention(mesh: Any, q: Array, k: Array, v: Array, *, int8: bool) -> Array:
    """`attention` with q, k, v [B, L, H, d] spread over axis `chips` of `mesh` by tokens; so is the result.

    Raises InputError unless the mesh divides both the tokens and the heads.
    """
    chips = mesh.shape[AXIS]
    if q.shape[1] % chips or k.shape[1] % chips or q.shape[2] % chips:
        raise InputError(
            f"{chips} chips divide neither {q.shape[1]} and {k.shape[1]} tokens nor {q.shape[2]} heads evenly",
            fix="use a number of chips that divides tokens and heads",
        )
    own = partial(_on_one_chip, int8=int8)
    run = jax.shard_map(own, mesh=mesh, in_specs=(TOKENS,) * 3, out_specs=TOKENS, check_vma=False)
    found: Array = run(q, k, v)
    return found


def _on_one_chip(q: Array, k: Array, v: Array, *, int8: bool) -> Array:
    whole = [jax.lax.all_to_all(x, AXIS, split_axis=2, concat_axis=1, tiled=True) for x in (q, k, v)]
    return jax.lax.all_to_all(attention(*whole, int8=int8), AXIS, split_axis=1, concat_axis=2, tiled=True)
