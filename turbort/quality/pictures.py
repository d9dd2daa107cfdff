"""Frames as inline PNG pictures: a filmstrip of both runs and where they differ."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from turbort.io.png import encode_png

GAIN = 8
"""Differences are shown this many times as large: one 8-bit level is invisible."""


def filmstrip(reference: Any, frames: Any, index: Sequence[int], psnr: Sequence[float], prompt: str) -> str:
    """Three rows of pictures for one clip; arrays uint8 [n, H, W, 3]."""
    head = "".join(f"<th>frame {i}<br><small>{psnr[i]:.1f} dB</small></th>" for i in index)
    rows = (
        ("baseline", [_picture(frame) for frame in reference]),
        ("quantised", [_picture(frame) for frame in frames]),
        (f"difference x {GAIN}", [_picture(difference(a, b)) for a, b in zip(reference, frames, strict=True)]),
    )
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows
    )
    return (
        f'<figure><figcaption>“{escape(prompt)}”</figcaption><div class="scroll">'
        f'<table class="film"><tr><th></th>{head}</tr>{body}</table></div></figure>'
    )


def difference(a: Any, b: Any) -> Any:
    """The largest difference over the channels, times GAIN, from black over red to yellow: uint8 [H, W, 3]."""
    apart = np.abs(a.astype(np.int16) - b.astype(np.int16)).max(-1) * GAIN
    return np.stack([np.clip(apart * 2, 0, 255), np.clip(apart * 2 - 255, 0, 255), np.zeros_like(apart)], -1).astype(np.uint8)


def _picture(frame: Any) -> str:
    data = base64.b64encode(encode_png(np.ascontiguousarray(frame))).decode()
    return f'<img src="data:image/png;base64,{data}" alt="">'
