"""What every video format has in common: checks, frame counting, and whole-or-nothing files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from turbort.errors import InputError, TurbortError
from turbort.io.atomic import resolve_target, write_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frames = NDArray[np.uint8]


class VideoWriter(ABC):
    """Takes frames as they are decoded and leaves one finished video, or nothing.

    Use it as a context manager. The video appears under its name when the block ends without an exception; on any
    exception, Ctrl-C included, everything written is deleted and a file that had the name before is untouched.

    Attributes:
        path: where the finished video is; PNG frames may settle it only at the end.
        frames: frames written so far.
        fps: frames per second, as a fraction.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float,
        *,
        frames_hint: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if width < 1 or height < 1:
            raise InputError(f"a video cannot be {width}x{height} pixels", fix="give a positive width and height")
        if not (math.isfinite(fps) and fps > 0):
            raise InputError(f"a video cannot have {fps} frames per second", fix="give a positive number, for example --fps 16")
        self.given = path
        self.width, self.height = width, height
        self.fps = Fraction(fps).limit_denominator(1001)
        self.frames_hint = frames_hint
        self.metadata = MappingProxyType(dict(metadata or {}))
        self.frames = 0
        self.path = self.prepare(path)

    def prepare(self, path: str | Path) -> Path:
        """The path that will be created; InputError when it cannot be."""
        return resolve_target(path)

    def write(self, frames: Frames) -> None:
        """Append uint8 frames [T, H, W, 3], red first. Raises InputError when the disk is full."""
        expected = (self.height, self.width, 3)
        if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != "uint8":
            raise ValueError(f"frames must be uint8 [T, {self.height}, {self.width}, 3], got {frames.dtype} {list(frames.shape)}")
        try:
            self._append(frames)
        except OSError as error:
            raise self._failure(error) from error
        self.frames += len(frames)

    def __enter__(self) -> VideoWriter:
        try:
            self._open()
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            if not self.frames:
                raise TurbortError(f"no frame was written to {self.given}", fix="ask for at least one frame")
            self._commit()
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise

    def _failure(self, error: OSError) -> TurbortError:
        return write_error(self.given, error, self._written())

    def _written(self) -> int:
        """Bytes on the disk so far, for messages."""
        return 0

    @abstractmethod
    def _open(self) -> Any:
        """Create the temporary file."""

    @abstractmethod
    def _append(self, frames: Frames) -> None:
        """Encode and write checked frames."""

    @abstractmethod
    def _commit(self) -> None:
        """Finish the file and give it its name."""

    @abstractmethod
    def _discard(self) -> None:
        """Delete everything written; must not raise and may be called at any point."""
