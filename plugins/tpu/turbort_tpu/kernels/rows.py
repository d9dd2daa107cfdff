"""Row-wise kernels: norms, modulation, gated residual, GELU, each with quantisation to 8 bits in the same pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from turbort_tpu.kernels.common import code_dtype, encode_rows, interpret, parameters, rows_block

BLOCK_BYTES = 2 << 20


def layer_norm_modulate(
    x: Array,
    scale: Array,
    shift: Array,
    *,
    eps: float,
    affine: bool = False,
    emit: str | None = None,
) -> Any:
    """(x - mean) / sqrt(var + eps) * (1 + scale) + shift; `affine` multiplies by scale itself (LayerNorm's weight).

    x [B, L, D]; scale, shift [B or 1, 1 or L, D]. Statistics in float32 over two passes. Returns x's shape and dtype,
    or (codes, scales [B, L, 1]) in row scheme `emit`.
    """

    def body(x: Array, scale: Array, shift: Array) -> Array:
        return _normalised(x, eps) * (scale if affine else 1.0 + scale) + shift

    return _rowwise(body, x, (scale, shift), emit)


def rms_norm(x: Array, weight: Array, *, eps: float, emit: str | None = None) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight; x [B, L, D], weight [1, 1, D]."""

    def body(x: Array, weight: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight

    return _rowwise(body, x, (weight,), emit)


def gelu(x: Array, *, emit: str | None = None) -> Any:
    """tanh-form GELU of x [B, L, D]."""
    return _rowwise(functools.partial(jax.nn.gelu, approximate=True), x, (), emit)


def quantise(x: Array, *, emit: str) -> Any:
    """x [B, L, D] in row scheme `emit`."""
    return _rowwise(lambda x: x, x, (), emit)


def gated_residual_norm_modulate(
    x: Array, y: Array, gate: Array, scale: Array, shift: Array, *, eps: float, emit: str | None = None
) -> tuple[Array, Any]:
    """(x_new, h): x_new = x + y * gate rounded to x's dtype, h = its modulated norm, in one pass over memory."""

    def body(x: Array, y: Array, gate: Array, scale: Array, shift: Array) -> tuple[Array, Array]:
        added = x + y * gate
        stored = added.astype(dtype).astype(jnp.float32)
        return added, _normalised(stored, eps) * (1.0 + scale) + shift

    dtype = x.dtype
    found: tuple[Array, Any] = _rowwise(body, x, (y, gate, scale, shift), emit, sums=True)
    return found


def _normalised(x: Array, eps: float) -> Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)


def _rowwise(body: Callable[..., Any], x: Array, others: tuple[Array, ...], emit: str | None, sums: bool = False) -> Any:
    """Run `body` on float32 blocks of rows; `others` broadcast over batch or rows; `sums`: body also returns x_new."""
    batch, length, width = x.shape
    most = max(32, BLOCK_BYTES // (4 * width) // 32 * 32)
    block = rows_block(length, min(256, most))
    row = pl.BlockSpec((1, block, width), lambda b, i: (b, i, 0))
    specs = [row, *(_spec(other, x.shape, block) for other in others)]
    shape = jax.ShapeDtypeStruct
    outputs: list[Any] = [(shape(x.shape, x.dtype), row)] if sums else []
    if emit is None:
        outputs.append((shape(x.shape, x.dtype), row))
    else:
        outputs.append((shape(x.shape, code_dtype(emit)), row))
        outputs.append((shape((batch, length, 1), jnp.float32), pl.BlockSpec((1, block, 1), lambda b, i: (b, i, 0))))
    storage = x.dtype

    def kernel(*refs: Any) -> None:
        inputs = [ref[0].astype(jnp.float32) for ref in refs[: len(specs)]]
        results = list(refs[len(specs) :])
        made = body(*inputs)
        if sums:
            results.pop(0)[0] = made[0].astype(storage)
            made = made[1]
        if emit is None:
            results[0][0] = made.astype(storage)
        else:
            # The consumer's reference quantises what it is handed: values already rounded to the storage dtype.
            codes, scales = encode_rows(made.astype(storage).astype(jnp.float32), emit)
            results[0][0] = codes
            results[1][0] = scales

    result = pl.pallas_call(
        kernel,
        grid=(batch, pl.cdiv(length, block)),
        in_specs=specs,
        out_specs=[spec for _, spec in outputs],
        out_shape=[form for form, _ in outputs],
        compiler_params=parameters("parallel", "parallel"),
        cost_estimate=pl.CostEstimate(
            flops=8 * x.size, transcendentals=batch * length, bytes_accessed=x.size * x.dtype.itemsize * (2 + len(others) // 2)
        ),
        interpret=interpret(),
        name="rows",
    )(x, *others)
    head = [result[0]] if sums else []
    tail = result[len(head) :]
    value = tail[0] if emit is None else (tail[0], tail[1])
    return (head[0], value) if sums else value


def _spec(other: Array, shape: tuple[int, ...], block: int) -> Any:
    """How an operand that broadcasts over batch and rows is cut into blocks."""
    whole_batch, per_row = other.shape[0] == shape[0] and shape[0] > 1, other.shape[1] == shape[1] and shape[1] > 1
    rows = block if per_row else 1
    return pl.BlockSpec(
        (1, rows, shape[2]),
        lambda b, i: (b if whole_batch else 0, i if per_row else 0, 0),
    )
