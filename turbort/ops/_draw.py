"""How conformance samples draw their tensors: reproducible, on any device, with the shapes of trouble built in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbort.op import Sample


@dataclass(frozen=True)
class Draw:
    """Draws standard-normal tensors from `generator` and hands them over in `dtype` on `device`.

    Values are drawn in float32 where the generator lives, so one seed gives the same numbers for every device.
    """

    generator: torch.Generator
    dtype: torch.dtype
    device: Any

    def __call__(self, *shape: int, mean: float = 0.0, scale: float = 1.0, outlier: bool = False) -> Tensor:
        """mean + scale * N(0, 1); with `outlier`, every 97th channel (at least one) is 100 times larger."""
        if torch.device(self.device).type == "meta":
            return torch.empty(shape, dtype=self.dtype, device="meta")
        values = torch.randn(shape, generator=self.generator, device=self.generator.device) * scale
        if outlier:
            values[..., ::97] *= 100.0
        return (values + mean).to(device=self.device, dtype=self.dtype)

    @property
    def wide(self) -> Draw:
        """Draws tensors that are float32 by contract (modulation, gates, rotation tables)."""
        return Draw(self.generator, torch.promote_types(self.dtype, torch.float32), self.device)

    def rotation(self, length: int, pairs: int) -> tuple[Tensor, Tensor]:
        """cos and sin of random angles, [length, pairs]."""
        angles = self.wide(length, pairs, scale=3.0)
        return angles.cos(), angles.sin()


def offset_view(x: Tensor) -> Tensor:
    """The same values, starting a few elements into a larger buffer (still dense)."""
    shift = 8
    flat = torch.cat((x.new_zeros(shift), x.reshape(-1), x.new_zeros(3)))
    return flat[shift : shift + x.numel()].view(x.shape)


def strided_view(x: Tensor) -> Tensor:
    """The same values as a slice of a wider tensor, as one part of a fused projection is."""
    wider = torch.cat((x.new_zeros(x.shape), x, x.new_zeros(x.shape)), dim=-1)
    return wider[..., x.shape[-1] : 2 * x.shape[-1]]


def spread(x: Tensor) -> Tensor:
    """The same directions, the first token a hundredth and the last a hundred times as large."""
    sizes = torch.logspace(-2, 2, x.shape[-2], dtype=torch.float32, device=x.device)
    return (x * sizes.unsqueeze(-1)).to(x.dtype)


def sample(name: str, make: Callable[[Draw], dict[str, Any]], *tags: str) -> Sample:
    """A Sample whose `make` gets a Draw."""

    def call(generator: torch.Generator, dtype: torch.dtype, device: Any) -> dict[str, Any]:
        return make(Draw(generator, dtype, device))

    return Sample(name, call, frozenset(tags))
