"""8-bit linear layers: s8 x s8 -> s32 or e4m3 x e4m3 -> f32 on the matrix unit, with the epilogue in the same kernel."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from turbort_tpu.kernels.common import LANES, interpret, largest_divisor, pad_to, parameters

ROWS = 512
COLUMNS = 512
DEPTH = 2048


def scaled_matmul(
    x: Array,
    x_scale: Array,
    w: Array,
    w_scale: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    gate: Array | None = None,
    *,
    out_dtype: Any,
    gelu: bool = False,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> Array:
    """residual + gate * act(x w^T * x_scale * w_scale + bias).

    x int8 or e4m3 [B, L, K] with x_scale float32 [B, L, 1]; w of x's dtype [N, K] with w_scale [1, N]; bias of N values;
    residual [B, L, N]; gate [B, 1, N] or [B, L, N]. int8 products are summed exactly in int32 (K < 2^17), e4m3
    products in float32. K and N of w are multiples of 128 (pad with zeros when packing); x is padded here. Returns
    [B, L, N] in `out_dtype`.
    """
    n, depth = w.shape
    x = pad_to(x, 2, depth)
    batch, length = x.shape[:2]
    bm = length if length <= rows else rows
    bn, bk = largest_divisor(n, LANES, columns), largest_divisor(depth, LANES, DEPTH)
    steps = depth // bk
    operands, specs = (
        [x, x_scale, w, w_scale],
        [
            pl.BlockSpec((1, bm, bk), lambda b, i, j, k: (b, i, k)),
            pl.BlockSpec((1, bm, 1), lambda b, i, j, k: (b, i, 0)),
            pl.BlockSpec((bn, bk), lambda b, i, j, k: (j, k)),
            pl.BlockSpec((1, bn), lambda b, i, j, k: (0, j)),
        ],
    )
    if bias is not None:
        operands.append(bias.reshape(1, n))
        specs.append(pl.BlockSpec((1, bn), lambda b, i, j, k: (0, j)))
    if residual is not None:
        operands.append(residual)
        specs.append(pl.BlockSpec((1, bm, bn), lambda b, i, j, k: (b, i, j)))
    if gate is not None:
        operands.append(gate)
        per_token = gate.shape[1] != 1 or length == 1
        specs.append(
            pl.BlockSpec((1, bm, bn), lambda b, i, j, k: (b, i, j))
            if per_token
            else pl.BlockSpec((1, 1, bn), lambda b, i, j, k: (b, 0, j))
        )
    accumulate = jnp.int32 if w.dtype == jnp.int8 else jnp.float32
    body = functools.partial(
        _body, steps=steps, gelu=gelu, has=(bias is not None, residual is not None, gate is not None), accumulate=accumulate
    )
    moved = batch * length * depth * (n // bn) + n * depth * batch * -(-length // bm) + batch * length * n * 2
    return pl.pallas_call(
        body,
        grid=(batch, pl.cdiv(length, bm), n // bn, steps),
        in_specs=specs,
        out_specs=pl.BlockSpec((1, bm, bn), lambda b, i, j, k: (b, i, j)),
        out_shape=jax.ShapeDtypeStruct((batch, length, n), out_dtype),
        scratch_shapes=[pltpu.VMEM((bm, bn), accumulate)],
        compiler_params=parameters("parallel", "parallel", "parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * length * n * depth, transcendentals=batch * length * n if gelu else 0, bytes_accessed=moved
        ),
        interpret=interpret(),
        name="scaled_matmul",
    )(*operands)


def _body(
    x_ref: Any, xs_ref: Any, w_ref: Any, ws_ref: Any, *rest: Any, steps: int, gelu: bool, has: Any, accumulate: Any
) -> None:
    refs = list(rest)
    bias_ref, residual_ref, gate_ref = (refs.pop(0) if there else None for there in has)
    out_ref, total_ref = refs
    step = pl.program_id(3)
    part = jax.lax.dot_general(x_ref[0], w_ref[...], (((1,), (1,)), ((), ())), preferred_element_type=accumulate)

    @pl.when(step == 0)
    def _first() -> None:
        total_ref[...] = part

    @pl.when(step > 0)
    def _next() -> None:
        total_ref[...] += part

    @pl.when(step == steps - 1)
    def _last() -> None:
        y = total_ref[...].astype(jnp.float32) * ws_ref[...] * xs_ref[0]
        if bias_ref is not None:
            y = y + bias_ref[...].astype(jnp.float32)
        if gelu:
            y = jax.nn.gelu(y, approximate=True)
        if gate_ref is not None:
            y = y * gate_ref[0].astype(jnp.float32)
        if residual_ref is not None:
            y = y + residual_ref[0].astype(jnp.float32)
        out_ref[0] = y.astype(out_ref.dtype)
