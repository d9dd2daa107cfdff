"""Calls that a trace leaves behind as one opaque op each, `turbort_tpu::site(number, tensors)`.

They run later, inside the one program of the whole step, on arrays that never left the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import torch
from torch import Tensor

from turbort_tpu.bridge.convert import TORCH_DTYPES


@dataclass(frozen=True)
class Site:
    """One traced call.

    Attributes:
        text: the function and its static arguments in words; equal texts compute the same.
        run: a function of (weights, arrays).
        weights: what it holds.
        outputs: shapes of what it returns.
    """

    text: str
    run: Callable[[list[Any], list[Any]], list[Any]]
    weights: list[Any]
    outputs: list[jax.ShapeDtypeStruct]


_trace: ContextVar[list[Site] | None] = ContextVar("trace", default=None)


@contextmanager
def tracing() -> Iterator[list[Site]]:
    """Collect calls instead of running them; yields the list they go to."""
    sites: list[Site] = []
    token = _trace.set(sites)
    try:
        yield sites
    finally:
        _trace.reset(token)


def traced() -> list[Site] | None:
    """The list that calls go to, or None outside a trace."""
    return _trace.get()


def leave(site: Site, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Write a call down in the trace in progress; returns fake tensors for its outputs."""
    sites = _trace.get()
    assert sites is not None
    sites.append(site)
    found: list[Tensor] = torch.ops.turbort_tpu.site(len(sites) - 1, list(tensors))
    return found


@torch.library.custom_op("turbort_tpu::site", mutates_args=())
def site_op(number: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Stands for call `number` of the trace in progress; it has no torch implementation."""
    raise RuntimeError("a traced site runs in JAX only")


@site_op.register_fake
def _(number: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    sites = _trace.get() or []
    return [torch.empty(out.shape, dtype=TORCH_DTYPES[str(out.dtype)], device="cpu") for out in sites[number].outputs]
