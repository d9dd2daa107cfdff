"""What kernels make from a weight once: another layout, sums of taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_made: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Per weight what was made from it, and for which purpose. An entry goes when its weight does."""


def kept(weight: Tensor, dtype: torch.dtype, purpose: str, make: Callable[[], Tensor]) -> Tensor:
    """What `make` returned for this weight and purpose before, unless the weight has changed in place since."""
    version = -1 if weight.is_inference() else weight._version
    known: Any = _made[weight] if weight in _made else None  # noqa: SIM401 - `get` of this class is untyped
    if known is None or known[0] != (dtype, version, purpose):
        known = _made[weight] = ((dtype, version, purpose), make())
    made: Tensor = known[1]
    return made
