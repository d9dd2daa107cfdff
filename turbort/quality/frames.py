"""Frames of both runs beside a report, as a small compressed NumPy file, so that a page can be made from them later."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turbort.errors import InputError
from turbort.io.atomic import Sink

if TYPE_CHECKING:
    from turbort.quality.verify import Clip

MOST = 8
"""Frames of a clip that are kept, evenly spread over it."""


def chosen(count: int) -> list[int]:
    """Indices of the kept frames, first and last among them."""
    return sorted({round(i * (count - 1) / max(1, MOST - 1)) for i in range(MOST)})


def save_frames(clips: Sequence[Clip], report: Path) -> Path:
    """Write `NAME.frames.npz` beside the report: arrays `reference`, `frames` [clips, n, H, W, 3] and `index` [n]."""
    index = chosen(len(clips[0].reference))
    path = report.with_name(f"{report.name.removesuffix('.json').removesuffix('.report')}.frames.npz")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        reference=np.stack([clip.reference[index] for clip in clips]),
        frames=np.stack([clip.frames[index] for clip in clips]),
        index=np.asarray(index),
    )
    sink = Sink(path)
    sink.write(buffer.getvalue())
    sink.commit()
    return path


def load_frames(path: Path) -> dict[str, Any]:
    """What `save_frames` wrote; InputError for another file."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in ("reference", "frames", "index")}
    except (OSError, ValueError, KeyError) as error:
        fix = "make the report again with `turbort verify -o`"
        raise InputError(f"cannot read frames from {path}: {error}", fix=fix) from None
