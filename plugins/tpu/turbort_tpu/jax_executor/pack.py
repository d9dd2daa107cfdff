"""Weights as the kernels want them: JAX arrays on the device, padded once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import torch

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor
from turbort_tpu.jax_executor.convert import to_jax
from turbort_tpu.kernels.common import LANES, pad_to, up

_SCHEMES = ("int8-channel", "fp8-channel")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FloatWeight:
    """A float weight [N, K] on the device."""

    values: Any


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=["n"])
@dataclass(frozen=True)
class ScaledWeight:
    """8-bit codes padded to multiples of 128 in both axes, float32 scales [1, N padded] (0 in the padding), and N."""

    values: Any
    scales: Any
    n: int


def plain(weight: torch.Tensor, bias: torch.Tensor | None = None) -> FloatWeight:
    """A float weight of any number of axes as [N, K]."""
    return FloatWeight(to_jax(weight.detach().flatten(1)))


def scaled(weight: QTensor, bias: torch.Tensor | None = None) -> ScaledWeight:
    """An `int8-channel` or `fp8-channel` weight; zero rows and columns change no sum. InputError for another scheme."""
    if weight.scheme not in _SCHEMES:
        raise InputError(f"the TPU linears pack {' and '.join(_SCHEMES)} weights, not {weight.scheme}")
    n, k = weight.shape
    values, scales = to_jax(weight.values), to_jax(weight.scales).reshape(1, n)
    rows, depth = up(n, LANES), up(k, LANES)
    return ScaledWeight(pad_to(pad_to(values, 0, rows), 1, depth), pad_to(scales, 1, rows), n)
