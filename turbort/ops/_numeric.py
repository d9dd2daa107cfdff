"""Small helpers that every reference uses: wide arithmetic and hand-over in a QTensor scheme."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or wider when it already is: statistics and softmax never run in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def plain(x: Tensor | QTensor) -> Tensor:
    """`x` as an ordinary tensor."""
    return x.dequantize() if isinstance(x, QTensor) else x


def emitted(y: Tensor, emit: str | None) -> Tensor | QTensor:
    """`y` itself, or quantised for its consumer."""
    return y if emit is None else quantize(y, emit)


def no_autocast(x: Tensor) -> torch.autocast:
    """A scope in which matmuls keep the dtype they are given, whatever autocast says outside."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
