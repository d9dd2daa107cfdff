"""QTensor: quantised values with their scales in a layout-free form that every kernel can pack from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class QTensor:
    """Quantised values with their scales.

    Attributes:
        scheme: how `values` and `scales` relate (`int8-token`, `int8-channel`, `int8-block128`, `fp8-token`,
            `fp8-channel`, `int4-group128`, `bsq8`, `bsq4`, or plain values with sums: `sums-64`, `sums-128`); see
            `turbort.quant.schemes`.
        values: quantised values in the logical shape, one value per element (int4 as int8 in [-8, 7]).
        scales: float32; its shape depends on the scheme.
        dtype: the float dtype that the values stand for; a linear returns it.
        mask: for block-sparse schemes, bool per tile: which tiles are kept.
        tile: edge of a block-sparse tile (4 or 8), 0 otherwise.
    """

    scheme: str
    values: Tensor
    scales: Tensor
    dtype: torch.dtype
    mask: Tensor | None = None
    tile: int = 0

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    def size(self, dim: int) -> int:
        return self.values.size(dim)

    def to(self, device: Any, *, non_blocking: bool = False) -> QTensor:
        """The same values on another device; `non_blocking` as in torch, for pinned memory."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> QTensor:
        """The same with `change` done to values, scales and mask."""
        mask = None if self.mask is None else change(self.mask)
        return QTensor(self.scheme, change(self.values), change(self.scales), self.dtype, mask, self.tile)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The float values these stand for, in `dtype` (default: `self.dtype`)."""
        from turbort.quant.schemes import dequantize

        return dequantize(self, dtype or self.dtype)
