"""Reading pictures: any format that the video library knows (PNG, JPEG, WebP, BMP, a video's first frame)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turbort.errors import InputError

MAX_EDGE = 16384


def read_image(path: str | Path) -> Any:
    """uint8 RGB [H, W, 3]. Raises InputError for a file that is missing, no picture, or larger than 16384 pixels a side."""
    import av

    place = Path(path).expanduser()
    if not place.is_file():
        raise InputError(f"there is no image at {place}", fix="check the path")
    try:
        with av.open(str(place)) as container:
            frame = next(container.decode(video=0))
            if not 1 <= frame.width <= MAX_EDGE or not 1 <= frame.height <= MAX_EDGE:
                raise InputError(f"{place} has {frame.width}x{frame.height} pixels, more than {MAX_EDGE} a side", fix="shrink it")
            return frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, StopIteration, IndexError, ValueError, OSError) as error:
        reason = str(error).strip() or type(error).__name__
        raise InputError(f"cannot read an image from {place}: {reason}", fix="give a PNG or JPEG file") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels; errors as `read_image`."""
    height, width = read_image(path).shape[:2]
    return int(width), int(height)
