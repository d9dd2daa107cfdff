"""What every kernel needs: how Pallas runs, block sizes, padding, and row-wise quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import tpu as pltpu

LANES = 128
E4M3_MAX = 448.0
ROW_FLOOR = 1e-8
MASKED = -1e30
"""A score that no key reaches: finite, so that a block of padding alone gives exp(MASKED - max) = 0 and no NaN."""
VMEM_LIMIT = 48 << 20
"""What a kernel may take of vector memory; fits v5p and tpu7x (64 MiB) with room for the compiler's own buffers."""

_mode: ContextVar[str] = ContextVar("mode", default="auto")


def interpret() -> Any:
    """Pallas' `interpret`: False when code for a TPU is wanted, True on XLA:CPU, parameters for the TPU simulator."""
    mode = _mode.get()
    if mode == "simulate":
        return pltpu.InterpretParams()
    if mode == "compile":
        return False
    return mode == "interpret" or jax.default_backend() != "tpu"


@contextmanager
def pallas(mode: str) -> Iterator[None]:
    """Trace kernels in this mode: `compile`, `interpret`, `simulate`, or `auto` (by the default device)."""
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def mode() -> str:
    """The mode in force, for keys of caches of traced functions."""
    return _mode.get()


def parameters(*semantics: Any, vmem: int = VMEM_LIMIT) -> Any:
    """Compiler parameters: which grid axes are independent (`parallel`) and which carry state (`arbitrary`)."""
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=vmem)


def up(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple."""
    return -(-value // multiple) * multiple


def largest_divisor(size: int, unit: int, most: int) -> int:
    """The largest multiple of `unit` that divides `size` (itself a multiple of `unit`) and is at most `most`."""
    count = size // unit
    return unit * max(part for part in range(1, max(2, most // unit + 1)) if count % part == 0)


def rows_block(length: int, most: int = 256) -> int:
    """Rows per grid step of a row-wise kernel: all of them when few, else `most` (the last block may be ragged)."""
    return length if length <= most else most


def pad_to(x: Array, axis: int, size: int) -> Array:
    """Zeros appended along `axis` up to `size`."""
    missing = size - x.shape[axis]
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


def encode_rows(y: Array, scheme: str) -> tuple[Array, Array]:
    """Codes and float32 scales [..., 1] of float32 rows: q = round(y / s), s = max(amax |row|, 1e-8) / 127 or / 448."""
    top = 127.0 if scheme.startswith("int8") else E4M3_MAX
    scale = jnp.maximum(jnp.max(jnp.abs(y), axis=-1, keepdims=True), ROW_FLOOR) / top
    if scheme.startswith("int8"):
        return jnp.round(y / scale).astype(jnp.int8), scale
    return jnp.clip(y / scale, -E4M3_MAX, E4M3_MAX).astype(jnp.float8_e4m3fn), scale


def code_dtype(scheme: str) -> Any:
    """The storage dtype of a row scheme."""
    return jnp.int8 if scheme.startswith("int8") else jnp.float8_e4m3fn


def precise(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """a b^T over the given axes with float32 sums; float32 inputs are multiplied in full float32."""
    high = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, precision=high, preferred_element_type=jnp.float32)
