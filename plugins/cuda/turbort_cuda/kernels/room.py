"""Room for the past in front of an activation, so that a convolution in time need not copy the activation to put it there.

    [ 2 frames, not written | T frames: the activation ]      channels innermost, per batch entry

A causal convolution wants its input behind the two frames that precede it. Copying both into a new buffer reads and writes the
whole activation once more. Whoever makes the activation may instead leave room in front of it (`with_room`), and the
convolution then copies two frames (`joined`). Passes over the activation between two convolutions of a residual block,
norm and SiLU included: norm reads and writes, the copy reads and writes, the convolution reads; with room, the middle two go.

Only the very tensor that `with_room` returned has room: a view of a longer clip looks the same by its strides, but the frames
before it are somebody's. No other tensor ever shows the room, and it is used once: a second convolution of the same
activation copies, so that it cannot overwrite what the first, perhaps on another stream, still reads.
The buffer lives as long as any view of it; to keep frames of an activation, clone them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from turbort.ops.conv import joined_inner

FRAMES = 2
"""What a kernel of three frames sees of the past."""

_unused: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Activation -> its buffer, room first, as [B, C, 2 + T, H, W]; until the room is used, or the activation is gone."""


def with_room(like: Tensor) -> Tensor:
    """An uninitialised tensor of the shape [B, C, T, H, W] and dtype of `like`, channels innermost, with room in front."""
    b, c, t, h, w = like.shape
    buffer = torch.empty((b, FRAMES + t, h, w, c), dtype=like.dtype, device=like.device).permute(0, 4, 1, 2, 3)
    x = buffer[:, :, FRAMES:]
    _unused[x] = buffer
    return x


def joined(x: Tensor, cache: Tensor | None, count: int) -> Tensor:
    """`count` frames of the past (the last of `cache`, zeros before those) and x, channels innermost: in place if x has room."""
    buffer = _room_of(x) if count == FRAMES else None
    if buffer is None:
        return joined_inner(x, cache, count)
    known = 0 if cache is None else min(count, cache.shape[2])
    buffer[:, :, : count - known].zero_()
    if cache is not None and known:
        buffer[:, :, count - known : count].copy_(cache[:, :, -known:])
    return buffer


def _room_of(x: Tensor) -> Tensor | None:
    if x not in _unused:
        return None
    buffer: Tensor = _unused[x]
    del _unused[x]
    mine = buffer[:, :, FRAMES:]
    # `x.data = ...` and `x.resize_()` leave the object and change what it shows.
    same = x.data_ptr() == mine.data_ptr() and (x.shape, x.stride(), x.dtype) == (mine.shape, mine.stride(), mine.dtype)
    return buffer if same else None
