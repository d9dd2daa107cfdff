"""turbort's ops on TPU kernels: the arguments of each reference, in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from turbort.errors import InputError
from turbort_tpu.bridge.call import Codes, jax_op
from turbort_tpu.bridge.executor import active
from turbort_tpu.bridge.pack import FloatWeight, ScaledWeight
from turbort_tpu.kernels import attention as dense
from turbort_tpu.kernels import matmul, plain, rope, rows, sla
from turbort_tpu.kernels.common import pad_to

Size3 = tuple[int, int, int]
active()  # a plan that loads these kernels next moves tensors to the executor's device, which must exist by then


@jax_op
def linear_float(
    x: Array,
    weight: FloatWeight | Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    gate: Array | None = None,
) -> Array:
    """`linear` at fp32 and bf16."""
    values = weight.values if isinstance(weight, FloatWeight) else weight
    out = x.dtype if residual is None else residual.dtype
    return plain.linear(x, values, bias, residual, gate, gelu=_gelu(activation), out_dtype=out)


@jax_op
def linear_int8(
    x: Array | Codes,
    weight: ScaledWeight,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    gate: Array | None = None,
) -> Array:
    """`linear` at w8a8: exact int32 sums."""
    return _scaled(x, weight, bias, activation, residual, gate, "int8-token")


@jax_op
def linear_fp8(
    x: Array | Codes,
    weight: ScaledWeight,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    gate: Array | None = None,
) -> Array:
    """`linear` at fp8: e4m3 products with float32 sums."""
    return _scaled(x, weight, bias, activation, residual, gate, "fp8-token")


def _scaled(
    x: Array | Codes,
    weight: ScaledWeight,
    bias: Array | None,
    activation: str | None,
    residual: Array | None,
    gate: Array | None,
    scheme: str,
) -> Array:
    own = x if isinstance(x, Codes) else _emitted(_by_rows(rows.quantise, x, emit=scheme), x)
    codes, lead = _three(own.values)
    width = weight.values.shape[0]
    y = matmul.scaled_matmul(
        codes,
        _three(own.scales)[0],
        weight.values,
        weight.scales,
        *(None if side is None else pad_to(_three(side)[0], 2, width) for side in (bias, residual, gate)),
        out_dtype=residual.dtype if residual is not None else jnp.dtype(own.dtype),
        gelu=_gelu(activation),
    )
    return y[..., : weight.n].reshape(*lead, weight.n)


@jax_op
def attention_float(q: Array, k: Array, v: Array) -> Array:
    """`attention` at bf16."""
    return dense.attention(q, k, v, int8=False)


@jax_op
def attention_int8(q: Array, k: Array, v: Array, *, precision: str | None = None) -> Array:
    """`attention` at int8."""
    return dense.attention(q, k, v, int8=True)


@jax_op
def sla_float(
    q: Array, k: Array, v: Array, proj_weight: Array, proj_bias: Array, *, topk: float, block: tuple[int, int] = (64, 128)
) -> Array:
    """`sla_attention` at bf16."""
    return sla.sla_attention(q, k, v, proj_weight, proj_bias, topk=topk, block=block, int8=False)


@jax_op
def sla_int8(
    q: Array,
    k: Array,
    v: Array,
    proj_weight: Array,
    proj_bias: Array,
    *,
    topk: float,
    block: tuple[int, int] = (64, 128),
    precision: str | None = None,
) -> Array:
    """`sla_attention` with its sparse branch at int8."""
    return sla.sla_attention(q, k, v, proj_weight, proj_bias, topk=topk, block=block, int8=True)


@jax_op
def norm_modulate(x: Array, scale: Array, shift: Array, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    """`norm_modulate`, quantising in the same pass where asked."""
    return _emitted(_by_rows(rows.layer_norm_modulate, x, _three(scale)[0], _three(shift)[0], eps=eps, emit=emit), x)


@jax_op
def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    """`layer_norm`."""
    sides = (side.reshape(1, 1, -1) for side in (weight, bias))
    return _emitted(_by_rows(rows.layer_norm_modulate, x, *sides, eps=eps, affine=True, emit=emit), x)


@jax_op
def rms_norm(x: Array, weight: Array, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    """`rms_norm`."""
    return _emitted(_by_rows(rows.rms_norm, x, weight.reshape(1, 1, -1), eps=eps, emit=emit), x)


@jax_op
def gelu_quant(x: Array, *, emit: str | None = None) -> Any:
    """`gelu_quant`."""
    return _emitted(_by_rows(rows.gelu, x, emit=emit), x)


@jax_op
def quantize(x: Array, *, emit: str) -> Any:
    """`quantize` to a row scheme."""
    return _emitted(_by_rows(rows.quantise, x, emit=emit), x)


@jax_op
def gated_residual_norm_modulate(
    x: Array, y: Array, gate: Array, scale: Array, shift: Array, *, eps: float = 1e-6, emit: str | None = None
) -> Any:
    """`gated_residual_norm_modulate` in one pass over memory."""
    added, h = rows.gated_residual_norm_modulate(x, y, gate, scale, shift, eps=eps, emit=emit)
    return added, _emitted(h, x)


@jax_op
def qk_norm_rope(x: Array, weight: Array, cos: Array, sin: Array, *, heads: int, eps: float = 1e-6) -> Array:
    """`qk_norm_rope`."""
    return rope.norm_rope(x, weight, cos, sin, heads=heads, eps=eps).reshape(*x.shape[:2], heads, -1)


@jax_op
def gated_residual(x: Array, y: Array, gate: Array) -> Array:
    """`gated_residual`."""
    return plain.gated_residual(x, y, gate)


@jax_op
def patchify(x: Array, *, patch: Size3 = (1, 2, 2)) -> Array:
    """`patchify`."""
    return plain.patchify(x, patch)


@jax_op
def unpatchify(x: Array, *, grid: Size3, patch: Size3 = (1, 2, 2), channels: int) -> Array:
    """`unpatchify`."""
    return plain.unpatchify(x, grid, patch, channels)


@jax_op
def causal_conv3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    cache: Array | None = None,
    stride: Size3 = (1, 1, 1),
    padding: Size3 = (0, 0, 0),
) -> Array:
    """`causal_conv3d`."""
    return plain.causal_conv3d(x, weight, bias, cache, stride, padding)


@jax_op
def vae_norm_silu(x: Array, gamma: Array, *, eps: float = 1e-12) -> Array:
    """`vae_norm_silu`."""
    return plain.vae_norm_silu(x, gamma, eps)


@jax_op
def vae_upsample(x: Array, weight: Array, bias: Array) -> Array:
    """`vae_upsample`."""
    return plain.vae_upsample(x, weight, bias)


def _by_rows(kernel: Callable[..., Any], x: Array, *others: Array, **options: Any) -> Any:
    """Run a row-wise kernel on x [..., D] seen as [B, L, D]."""
    full, lead = _three(x)
    made = kernel(full, *others, **options)
    return jax.tree.map(lambda part: part.reshape(*lead, part.shape[-1]), made)


def _three(x: Array) -> tuple[Array, tuple[int, ...]]:
    """x as [B, L, D], and its leading axes."""
    lead = x.shape[:-1]
    return x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1]), lead


def _emitted(made: Any, x: Array) -> Any:
    return Codes(made[0], made[1], str(x.dtype)) if isinstance(made, tuple) else made


def _gelu(activation: str | None) -> bool:
    if activation not in (None, "gelu_tanh"):
        raise InputError(f"activation {activation!r} is not fused into linear", tried=["allowed: None, 'gelu_tanh'"])
    return activation is not None
