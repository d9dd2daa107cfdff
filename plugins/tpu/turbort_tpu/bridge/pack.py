"""Weights as the kernels want them, padded once and held by the executor in use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import torch
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor
from turbort_tpu.bridge.executor import active
from turbort_tpu.kernels.common import LANES, up

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


def plain(weight: Tensor, bias: Tensor | None = None) -> FloatWeight:
    """A float weight of any number of axes as [N, K]."""
    return FloatWeight(active().hold(weight.detach().flatten(1)))


def scaled(weight: QTensor, bias: Tensor | None = None) -> ScaledWeight:
    """An `int8-channel` or `fp8-channel` weight; zero rows and columns change no sum. InputError for another scheme."""
    if weight.scheme not in _SCHEMES:
        raise InputError(f"the TPU linears pack {' and '.join(_SCHEMES)} weights, not {weight.scheme}")
    n, k = weight.shape
    rows, depth = up(n, LANES), up(k, LANES)
    hold = active().hold
    return ScaledWeight(
        hold(_padded(weight.values, rows, depth)), hold(_padded(weight.scales.reshape(1, n).to(torch.float32), 1, rows)), n
    )


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """x [r, c] with zeros appended up to [rows, columns]."""
    if tuple(x.shape) == (rows, columns):
        return x
    out = torch.zeros(rows, columns, dtype=x.dtype, device=x.device)
    out[: x.shape[0], : x.shape[1]] = x
    return out
