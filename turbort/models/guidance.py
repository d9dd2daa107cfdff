"""Classifier-free guidance and expert switching: velocity functions made from a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from turbort.models.dit_layers import CrossKV, Kept
from turbort.models.sampler import TRAIN_STEPS, Velocity

Predict = Callable[[Tensor, float, Sequence[CrossKV]], Tensor]
"""predict(x, t, text): one call of the transformer; x [B, C, T, H, W], t in [0, 1000]."""


def guided(
    predict: Predict, text: Sequence[CrossKV], negative: Sequence[CrossKV] | None, scale: float, *, together: bool = False
) -> Velocity:
    """v = v_negative + scale * (v_text - v_negative); one call per step when `scale` is 1 or there is no negative text.

    With `together` both passes run as one batch of twice the size, otherwise one after the other.
    """
    if scale == 1.0 or negative is None:
        return lambda x, t: predict(x, t, text)
    if together:
        both = [concat(a, b) for a, b in zip(text, negative, strict=True)]

        def paired(x: Tensor, t: float) -> Tensor:
            positive, other = predict(torch.cat([x, x]), t, both).float().chunk(2)
            return other + scale * (positive - other)

        return paired

    def sequential(x: Tensor, t: float) -> Tensor:
        positive, other = predict(x, t, text).float(), predict(x, t, negative).float()
        return other + scale * (positive - other)

    return sequential


def by_noise(high: Velocity, low: Velocity, boundary: float) -> Velocity:
    """The high-noise expert while t >= boundary (in [0, 1]), then the low-noise expert."""
    return lambda x, t: (high if t >= boundary * TRAIN_STEPS else low)(x, t)


def concat(a: CrossKV, b: CrossKV) -> CrossKV:
    """Two prompts' keys and values as one batch."""
    image = [None if mine is None or other is None else _joined(mine, other) for mine, other in zip(a[2:], b[2:], strict=True)]
    return CrossKV(_joined(a.key, b.key), _joined(a.value, b.value), *image)


def _joined(a: Tensor | Kept, b: Tensor | Kept) -> Tensor | Kept:
    if isinstance(a, Kept) and isinstance(b, Kept):
        return Kept(torch.cat([a.codes, b.codes]), torch.cat([a.scales, b.scales]))
    assert isinstance(a, Tensor)  # one denoiser keeps both prompts alike
    assert isinstance(b, Tensor)
    return torch.cat([a, b])
