"""Arrays between torch (on the host) and JAX, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

# numpy has no name for these; they travel as integers of the same width.
_DISGUISE: Mapping[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.bfloat16: (torch.int16, jnp.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, jnp.float8_e4m3fn),
}
JAX_DTYPES: Mapping[torch.dtype, Any] = {
    torch.float32: jnp.float32,
    torch.float16: jnp.float16,
    torch.bfloat16: jnp.bfloat16,
    torch.float8_e4m3fn: jnp.float8_e4m3fn,
    torch.int8: jnp.int8,
    torch.uint8: jnp.uint8,
    torch.int16: jnp.int16,
    torch.int32: jnp.int32,
    torch.int64: jnp.int32,  # JAX keeps 32 bits; indices of these programs are far below 2^31
    torch.bool: jnp.bool_,
}
TORCH_DTYPES: Mapping[str, torch.dtype] = {
    str(jnp.dtype(found)): name for name, found in JAX_DTYPES.items() if name is not torch.int64
}


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A copy of a host tensor as a JAX array on the default device."""
    host = tensor.detach()
    if host.dtype in _DISGUISE:
        plain, wanted = _DISGUISE[host.dtype]
        return jnp.array(host.contiguous().view(plain).numpy().view(jnp.dtype(wanted)), copy=True)
    return jnp.array(host.numpy(), dtype=JAX_DTYPES[host.dtype], copy=True)


def to_torch(array: jax.Array) -> torch.Tensor:
    """A copy of a JAX array as a host tensor; waits until the array is there."""
    host = np.asarray(array)
    name = TORCH_DTYPES[str(host.dtype)]
    if name in _DISGUISE:
        plain = np.int16 if host.dtype.itemsize == 2 else np.uint8
        return torch.from_numpy(np.array(host.view(plain), copy=True)).view(name)
    return torch.from_numpy(np.array(host, copy=True))


def spec_of(tensor: torch.Tensor) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a tensor as JAX sees them."""
    return jax.ShapeDtypeStruct(tuple(tensor.shape), JAX_DTYPES[tensor.dtype])
