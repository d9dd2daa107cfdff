"""Cutting latents into patch tokens and putting them back."""

from __future__ import annotations

from torch import Tensor

from turbort.errors import InputError
from turbort.op import op
from turbort.ops.samples_conv import patchify_samples, unpatchify_samples

Size3 = tuple[int, int, int]


@op(samples=patchify_samples)
def patchify(x: Tensor, *, patch: Size3 = (1, 2, 2)) -> Tensor:
    """[B, C, T, H, W] -> [B, L, C*pt*ph*pw], tokens in (t, h, w) order, features in (C, pt, ph, pw) order.

    The feature order is that of a Conv3d weight flattened from axis 1, so the patch embedding is a linear.
    Raises InputError when T, H, W are not multiples of the patch.
    """
    b, c, t, h, w = x.shape
    pt, ph, pw = patch
    if t % pt or h % ph or w % pw:
        raise InputError(f"latent of {t}x{h}x{w} (frames x height x width) is not a multiple of patch {pt}x{ph}x{pw}")
    y = x.reshape(b, c, t // pt, pt, h // ph, ph, w // pw, pw)
    return y.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, -1, c * pt * ph * pw)


@op(samples=unpatchify_samples)
def unpatchify(x: Tensor, *, grid: Size3, patch: Size3 = (1, 2, 2), channels: int) -> Tensor:
    """[B, L, pt*ph*pw*C] -> [B, C, T*pt, H*ph, W*pw], features in (pt, ph, pw, C) order as Wan's head gives them.

    `grid` is (T, H, W) in patches. Raises InputError when L or the feature count does not fit.
    """
    (t, h, w), (pt, ph, pw) = grid, patch
    want = (t * h * w, pt * ph * pw * channels)
    if tuple(x.shape[1:]) != want:
        raise InputError(f"tokens of shape {tuple(x.shape[1:])} do not fit grid {grid}, which needs {want}")
    y = x.reshape(x.shape[0], t, h, w, pt, ph, pw, channels)
    return y.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(x.shape[0], channels, t * pt, h * ph, w * pw)
