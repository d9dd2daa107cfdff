"""Writing results: videos as mp4, gif, PNG frames or npy, and text files, each whole or not at all.

write_behind(open_writer("out.mp4", 832, 480, fps=16), decoder)   # pixels [3, T, H, W], as they are decoded
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from turbort.errors import unknown
from turbort.io.atomic import atomic_bytes, atomic_text, resolve_target
from turbort.io.background import write_behind
from turbort.io.encoded import GifWriter, Mp4Writer
from turbort.io.frames import Arriving, frames_to_uint8
from turbort.io.npy import NpyWriter
from turbort.io.png import PngWriter
from turbort.io.writer import VideoWriter

FORMATS: Mapping[str, type[VideoWriter]] = {".mp4": Mp4Writer, ".gif": GifWriter, ".png": PngWriter, ".npy": NpyWriter}

__all__ = [
    "FORMATS",
    "Arriving",
    "VideoWriter",
    "atomic_bytes",
    "atomic_text",
    "check_writable",
    "frames_to_uint8",
    "open_writer",
    "resolve_target",
    "write_behind",
]


def open_writer(
    path: str | Path,
    width: int,
    height: int,
    fps: float,
    frames_hint: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> VideoWriter:
    """A writer for the format that the suffix of `path` names; a context manager, see `VideoWriter`.

    `frames_hint` lets npy refuse at once when the disk has no room. `metadata` (`title`, `comment`) goes into mp4 and gif.
    Raises InputError for an unknown suffix, a folder that is missing or not writable, or a size the format cannot hold.
    """
    return _format(path)(path, width, height, fps, frames_hint=frames_hint, metadata=metadata)


def check_writable(path: str | Path, width: int = 16, height: int = 16, fps: float = 1.0) -> Path:
    """Raise now what `open_writer` with the same arguments would raise later, before heavy work is done; writes nothing.

    Returns the path that will be created.
    """
    return open_writer(path, width, height, fps).path


def _format(path: str | Path) -> type[VideoWriter]:
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise unknown("video format", suffix or str(path), FORMATS, fix="end the name in .mp4, .gif, .png or .npy")
    return FORMATS[suffix]
