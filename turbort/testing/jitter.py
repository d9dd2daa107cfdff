"""Scale jitter on purpose: what a quantiser does whose scales jump from frame to frame, for metrics that must see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from turbort.op import Slot
from turbort.quant.qtensor import QTensor


def gains(frames: int, amount: float, seed: int | None = None) -> list[float]:
    """A factor per frame: 1 + amount, 1 - amount, and so on in turn, or in an order drawn from `seed`."""
    if seed is None:
        return [1 + amount * (-1) ** t for t in range(frames)]
    signs = torch.randint(0, 2, (frames,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return [1 + amount * sign for sign in signs.tolist()]


@contextmanager
def jitter(slot: Slot, factors: Sequence[float]) -> Iterator[None]:
    """Inside the block the values that a call site reads first, x [B, T * P, K], are multiplied by a factor per frame.

    Of a QTensor with a scale per token the scales are multiplied, which is the same. The codes stay as they are.
    """
    kept = slot.fn

    def call(x: Tensor | QTensor, *args: Any, **kwargs: Any) -> Any:
        return kept(_scaled(x, factors), *args, **kwargs)

    slot.fn = call
    try:
        yield
    finally:
        slot.fn = kept


def _scaled(x: Tensor | QTensor, factors: Sequence[float]) -> Tensor | QTensor:
    per_row = torch.tensor(factors, device=x.device).repeat_interleave(x.shape[1] // len(factors)).view(1, -1, 1)
    if isinstance(x, Tensor):
        return (x * per_row).to(x.dtype)
    return QTensor(x.scheme, x.values, x.scales * per_row, x.dtype)
