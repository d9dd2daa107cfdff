"""Ops that XLA's own fusions compute well: float linears, patches, residuals and the convolutions of the VAE."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from turbort_tpu.kernels.common import precise

Size3 = tuple[int, int, int]


def linear(
    x: Array, weight: Array, bias: Array | None, residual: Array | None, gate: Array | None, *, gelu: bool, out_dtype: Any
) -> Array:
    """residual + gate * act(x W^T + b) with float32 sums; x [..., K], weight [N, K]."""
    y = precise(x, weight.astype(x.dtype), (x.ndim - 1, 1))
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    if gelu:
        y = jax.nn.gelu(y, approximate=True)
    if gate is not None:
        y = y * gate.astype(jnp.float32)
    if residual is not None:
        y = y + residual.astype(jnp.float32)
    return y.astype(out_dtype)


def gated_residual(x: Array, y: Array, gate: Array) -> Array:
    """x + y * gate in float32."""
    return (x.astype(jnp.float32) + y.astype(jnp.float32) * gate.astype(jnp.float32)).astype(x.dtype)


def patchify(x: Array, patch: Size3) -> Array:
    """[B, C, T, H, W] to tokens with features in (C, pt, ph, pw) order."""
    b, c, t, h, w = x.shape
    pt, ph, pw = patch
    y = x.reshape(b, c, t // pt, pt, h // ph, ph, w // pw, pw).transpose(0, 2, 4, 6, 1, 3, 5, 7)
    return y.reshape(b, -1, c * pt * ph * pw)


def unpatchify(x: Array, grid: Size3, patch: Size3, channels: int) -> Array:
    """Tokens with features in (pt, ph, pw, C) order to [B, C, T, H, W]."""
    (t, h, w), (pt, ph, pw) = grid, patch
    y = x.reshape(x.shape[0], t, h, w, pt, ph, pw, channels).transpose(0, 7, 1, 4, 2, 5, 3, 6)
    return y.reshape(x.shape[0], channels, t * pt, h * ph, w * pw)


def causal_conv3d(x: Array, weight: Array, bias: Array | None, cache: Array | None, stride: Size3, padding: Size3) -> Array:
    """3D convolution that sees no future frame; arguments as `turbort.ops.conv.causal_conv3d`."""
    pt, ph, pw = padding
    if pt:
        front = x[:, :, :0] if cache is None else cache[:, :, -2 * pt :].astype(x.dtype)
        x = jnp.concatenate((jnp.pad(front, ((0, 0), (0, 0), (2 * pt - front.shape[2], 0), (0, 0), (0, 0))), x), axis=2)
    y = _convolve(x, weight.astype(x.dtype), stride, ((0, 0), (ph, ph), (pw, pw)))
    return _biased(y, bias).astype(x.dtype)


def vae_norm_silu(x: Array, gamma: Array, eps: float) -> Array:
    """SiLU(x / max(||x||_2 over channels, eps) * sqrt(C) * gamma) in float32."""
    full = x.astype(jnp.float32)
    norm = jnp.maximum(jnp.sqrt(jnp.sum(full * full, axis=1, keepdims=True)), eps)
    gain = gamma.astype(jnp.float32).reshape(1, -1, *(1,) * (x.ndim - 2)) * x.shape[1] ** 0.5
    return jax.nn.silu(full / norm * gain).astype(x.dtype)


def vae_upsample(x: Array, weight: Array, bias: Array) -> Array:
    """Nearest upsampling by 2 in space, then a 3x3 convolution of every frame."""
    grown = jnp.repeat(jnp.repeat(x, 2, axis=-1), 2, axis=-2)
    y = _convolve(grown, weight.astype(x.dtype)[:, :, None], (1, 1, 1), ((0, 0), (1, 1), (1, 1)))
    return _biased(y, bias).astype(x.dtype)


def _convolve(x: Array, weight: Array, stride: Size3, padding: Any) -> Array:
    high = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.conv_general_dilated(
        x,
        weight,
        stride,
        padding,
        dimension_numbers=("NCDHW", "OIDHW", "NCDHW"),
        precision=high,
        preferred_element_type=jnp.float32,
    )


def _biased(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.astype(jnp.float32).reshape(1, -1, 1, 1, 1)
