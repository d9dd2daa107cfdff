"""One step over several chips: each takes a share of the batch and holds all weights, and none speaks to another."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from torch import Tensor

from turbort.errors import InputError

CHIPS = "TURBORT_TPU_CHIPS"
AXIS = "batch"
WHOLE, SHARE = PartitionSpec(), PartitionSpec(AXIS)


@dataclass(frozen=True)
class Spread:
    """A mesh of chips that divide a batch of `batch` samples among themselves."""

    mesh: Mesh
    batch: int

    @classmethod
    def over(cls, devices: Sequence[Any], batch: int) -> Spread:
        """InputError when the chips do not divide the batch."""
        if batch % len(devices):
            raise InputError(
                f"{len(devices)} chips do not divide a batch of {batch} evenly",
                fix=f"set {CHIPS} to a divisor of {batch}, or give the profile a batch that is a multiple of {len(devices)}",
            )
        return cls(Mesh(np.array(devices), (AXIS,)), batch)

    def share(self, tensor: Tensor) -> Tensor:
        """What one chip sees of an argument: its samples of a tensor whose first axis is the batch, all of any other."""
        return tensor[: self.batch // self.mesh.size] if self._split(tensor) else tensor

    def spec(self, tensor: Any) -> PartitionSpec:
        """How an argument, or the shape of one, lies on the mesh."""
        return SHARE if self._split(tensor) else WHOLE

    def _split(self, tensor: Any) -> bool:
        return tensor.ndim > 0 and tensor.shape[0] == self.batch

    def placed(self, value: Any, spec: PartitionSpec = WHOLE) -> Any:
        """Arrays on the mesh: on every chip, or by shares of their first axis."""
        return jax.device_put(value, NamedSharding(self.mesh, spec))

    def wrap(self, program: Callable[..., list[Any]], inputs: Sequence[Any]) -> Callable[..., list[Any]]:
        """`program(weights, constants, parameters, inputs)` of one chip's share as a function of whole arrays."""
        specs = WHOLE, WHOLE, WHOLE, [self.spec(tensor) for tensor in inputs]
        run: Callable[..., list[Any]] = jax.shard_map(program, mesh=self.mesh, in_specs=specs, out_specs=SHARE, check_vma=False)
        return run


def asked() -> int:
    """How many chips `TURBORT_TPU_CHIPS` asks for (default 1); InputError when that is no number of chips here."""
    text = os.environ.get(CHIPS) or "1"
    there = len(jax.devices())
    if not text.isdecimal() or not 1 <= int(text) <= there:
        raise InputError(f"{CHIPS}={text} on a machine with {there} chip(s)", fix=f"set {CHIPS} to 1 to {there}, or unset it")
    return int(text)


def spread_of(tensors: Sequence[Tensor]) -> Spread | None:
    """The spread that the user asked for, for a step whose first tensor has the batch in front; None for one chip."""
    count = asked()
    if count == 1:
        return None
    return Spread.over(jax.devices()[:count], tensors[0].shape[0] if tensors and tensors[0].ndim else 1)
