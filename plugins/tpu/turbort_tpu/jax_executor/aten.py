"""JAX functions for the aten ops that the glue between a model's call sites decomposes to, and that references use."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import Array

from turbort.errors import TurbortError
from turbort_tpu.bridge.convert import JAX_DTYPES
from turbort_tpu.kernels.attention import attention

aten = torch.ops.aten
Table = Mapping[Any, Callable[..., Any]]


def lookup(target: Any) -> Callable[..., Any]:
    """The JAX function of an aten overload; TurbortError for one that no model needed so far."""
    if target is operator.getitem:
        return operator.getitem
    found = TABLE.get(getattr(target, "overloadpacket", target))
    if found is None:
        raise TurbortError(
            f"the JAX executor has no rule for {target}",
            fix="run this model on another backend, or add the op to turbort_tpu/jax_executor/aten.py",
        )
    return found


def _dtype(dtype: torch.dtype | None) -> Any:
    return None if dtype is None else JAX_DTYPES[dtype]


def _binary(function: Callable[..., Array]) -> Callable[..., Array]:
    """torch's rule for scalars (they take the array's dtype) is JAX's weak typing; `alpha` scales the second."""

    def run(a: Any, b: Any, *, alpha: float = 1, **_: Any) -> Array:
        return function(a, b if alpha == 1 else b * alpha)

    return run


def _axes(dim: Any) -> Any:
    return tuple(dim) if isinstance(dim, (list, tuple)) else dim


def _cast(x: Array, dtype: torch.dtype | None = None, **_: Any) -> Array:
    return x if dtype is None else x.astype(_dtype(dtype))


def _full(size: Sequence[int], value: Any, dtype: torch.dtype | None = None, **_: Any) -> Array:
    return jnp.full(tuple(size), value, _dtype(dtype) or (jnp.float32 if isinstance(value, float) else None))


def _full_like(x: Array, value: Any, dtype: torch.dtype | None = None, **_: Any) -> Array:
    return jnp.full(x.shape, value, _dtype(dtype) or x.dtype)


def _arange(*args: Any, dtype: torch.dtype | None = None, **_: Any) -> Array:
    start, end, step = {1: (0, *args, 1), 2: (*args, 1), 3: args}[len(args)]
    return jnp.arange(start, end, step, dtype=_dtype(dtype))


def _expand(x: Array, size: Sequence[int], **_: Any) -> Array:
    lead = len(size) - x.ndim
    shape = [x.shape[i - lead] if wanted == -1 else wanted for i, wanted in enumerate(size)]
    return jnp.broadcast_to(x, shape)


def _slice(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    index: list[Any] = [slice(None)] * x.ndim
    index[dim] = slice(start, None if end is not None and end >= x.shape[dim] else end, step)
    return x[tuple(index)]


def _split(x: Array, sizes: int | Sequence[int], dim: int = 0) -> list[Array]:
    parts = [sizes] * -(-x.shape[dim] // sizes) if isinstance(sizes, int) else list(sizes)
    cuts = [sum(parts[: i + 1]) for i in range(len(parts) - 1)]
    return jnp.split(x, cuts, axis=dim)


def _unbind(x: Array, dim: int = 0) -> list[Array]:
    return [jnp.take(x, i, axis=dim) for i in range(x.shape[dim])]


def _pad(x: Array, pad: Sequence[int], value: float = 0.0) -> Array:
    widths = [(0, 0)] * x.ndim
    for axis, (low, high) in enumerate(zip(pad[0::2], pad[1::2], strict=True)):
        widths[x.ndim - 1 - axis] = (max(low, 0), max(high, 0))
    y = jnp.pad(x, widths, constant_values=value)
    for axis, (low, high) in enumerate(zip(pad[0::2], pad[1::2], strict=True)):
        at = x.ndim - 1 - axis
        y = jax.lax.slice_in_dim(y, max(-low, 0), y.shape[at] + min(high, 0), axis=at)
    return y


def _matmul(a: Array, b: Array) -> Array:
    high = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=high, preferred_element_type=jnp.float32).astype(a.dtype)


def _layer_norm(x: Array, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[Array, Array, Array]:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    full = x.astype(jnp.float32)
    mean = full.mean(axes, keepdims=True)
    inverse = jax.lax.rsqrt(((full - mean) ** 2).mean(axes, keepdims=True) + eps)
    y = (full - mean) * inverse
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).astype(x.dtype), mean, inverse


def _attention(q: Array, k: Array, v: Array, *_: Any, **named: Any) -> tuple[Array]:
    """torch's fused attention on the kernel of this plugin: the scores never exist as a whole.

    XLA:TPU fuses softmax(q k^T) v only where it recognises the pattern; missing it costs 96 GiB at 32,768 tokens.
    """
    if named.get("attn_mask") is not None or q.shape[-1] % 128:
        raise TurbortError("the JAX executor attends without mask over heads of multiples of 128", fix="use the op `attention`")
    heads_second = [t.transpose(0, 2, 1, 3) for t in (q, k, v)]
    return (attention(*heads_second, int8=False).transpose(0, 2, 1, 3),)


def _sort(x: Array, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Array, Array]:
    order = jnp.argsort(x, axis=dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, order, axis=dim), order


def _unary(*names: str) -> dict[Any, Callable[..., Any]]:
    return {getattr(aten, name): getattr(jnp, name) for name in names}


TABLE: Table = {
    **_unary("exp", "cos", "sin", "sqrt", "abs", "round", "maximum", "minimum", "square"),
    aten.add: _binary(operator.add),
    aten.sub: _binary(operator.sub),
    aten.mul: _binary(operator.mul),
    aten.div: lambda a, b, **_: a / b,
    aten.neg: operator.neg,
    aten.rsub: lambda a, b, alpha=1: b - a * alpha,
    aten.pow: operator.pow,
    aten.reciprocal: lambda x: 1 / x,
    aten.rsqrt: jax.lax.rsqrt,
    aten.silu: jax.nn.silu,
    aten.sigmoid: jax.nn.sigmoid,
    aten.gelu: lambda x, approximate="none": jax.nn.gelu(x, approximate=approximate == "tanh"),
    aten.ge: operator.ge,
    aten.lt: operator.lt,
    aten.where: jnp.where,
    aten.masked_fill: lambda x, mask, value: jnp.where(mask, jnp.asarray(value, x.dtype), x),
    aten.clamp: lambda x, low=None, high=None: jnp.clip(x, low, high),
    aten.clamp_min: jnp.maximum,
    aten.clamp_max: jnp.minimum,
    aten.addcmul: lambda x, a, b, value=1: x + value * a * b,
    aten._to_copy: _cast,
    aten.to: _cast,
    aten.clone: lambda x, **_: x,
    aten.detach: lambda x: x,
    aten.alias: lambda x: x,
    aten.lift_fresh_copy: lambda x: x,
    aten.contiguous: lambda x, **_: x,
    aten.view: lambda x, size: x.reshape(tuple(size)),
    aten._unsafe_view: lambda x, size: x.reshape(tuple(size)),
    aten.reshape: lambda x, size: x.reshape(tuple(size)),
    aten.permute: jnp.transpose,
    aten.transpose: jnp.swapaxes,
    aten.t: lambda x: x.T,
    aten.squeeze: lambda x, dim=None: jnp.squeeze(x, _axes(dim)),
    aten.unsqueeze: jnp.expand_dims,
    aten.expand: _expand,
    aten.repeat: lambda x, repeats: jnp.tile(x, tuple(repeats)),
    aten.cat: lambda parts, dim=0: jnp.concatenate(parts, axis=dim),
    aten.stack: lambda parts, dim=0: jnp.stack(parts, axis=dim),
    aten.slice: _slice,
    aten.select: lambda x, dim, index: jnp.take(x, index, axis=dim),
    aten.split: _split,
    aten.split_with_sizes: _split,
    aten.unbind: _unbind,
    aten.index_select: lambda x, dim, index: jnp.take(x, index, axis=dim),
    aten.constant_pad_nd: _pad,
    aten.full: _full,
    aten.zeros: lambda size, **named: _full(size, 0.0, **named),
    aten.ones: lambda size, **named: _full(size, 1.0, **named),
    aten.full_like: _full_like,
    aten.zeros_like: lambda x, **named: _full_like(x, 0, named.get("dtype")),
    aten.ones_like: lambda x, **named: _full_like(x, 1, named.get("dtype")),
    aten.arange: _arange,
    aten.scalar_tensor: lambda value, dtype=None, **_: jnp.asarray(value, _dtype(dtype)),
    aten.mean: lambda x, dim=None, keepdim=False, **_: x.mean(_axes(dim), keepdims=keepdim),
    aten.sum: lambda x, dim=None, keepdim=False, **_: x.sum(_axes(dim), keepdims=keepdim),
    aten.amax: lambda x, dim=(), keepdim=False: x.max(_axes(dim) or None, keepdims=keepdim),
    aten.linalg_vector_norm: lambda x, ord=2, dim=None, keepdim=False, **_: jnp.sqrt((x * x).sum(_axes(dim), keepdims=keepdim)),
    aten._softmax: lambda x, dim, half: jax.nn.softmax(x, axis=dim),
    aten.sort: _sort,
    aten.mm: _matmul,
    aten.bmm: _matmul,
    aten.matmul: _matmul,
    aten.addmm: lambda bias, a, b: _matmul(a, b) + bias,
    aten._int_mm: lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.int32),
    aten.native_layer_norm: _layer_norm,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
