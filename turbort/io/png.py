"""PNG frames: `out.png` becomes the folder `out/` with `00000.png`, `00001.png`, ...; a single frame stays `out.png`."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.errors import InputError
from turbort.io.atomic import FolderSink, resolve_target
from turbort.io.writer import VideoWriter

if TYPE_CHECKING:
    from turbort.io.writer import Frames

FRAME = re.compile(r"\d{5,}\.png")
_ONE_SECOND = Fraction(1, 1)


class PngWriter(VideoWriter):
    """Lossless frames, one file each. A folder of that name is replaced only if it holds nothing but such frames."""

    _sink: FolderSink | None = None
    _encoder: Any = None
    _bytes = 0

    def prepare(self, path: str | Path) -> Path:
        self._single = resolve_target(path)
        folder = self._single.with_suffix("")
        if folder.exists():
            _require_frames_only(folder)
        return folder

    def _open(self) -> None:
        self._sink = FolderSink(self.path)

    def _append(self, frames: Frames) -> None:
        assert self._sink is not None
        for offset, image in enumerate(frames):
            data = encode_png(image)
            (self._sink.path / f"{self.frames + offset:05d}.png").write_bytes(data)
            self._bytes += len(data)

    def _commit(self) -> None:
        assert self._sink is not None
        if self.frames == 1:
            os.replace(self._sink.path / "00000.png", self._single)
            self.path = self._single
            self._sink.discard()
            return
        if self.path.exists():
            _require_frames_only(self.path)
        self._sink.commit()

    def _discard(self) -> None:
        if self._sink is not None:
            self._sink.discard()

    def _written(self) -> int:
        return self._bytes


def encode_png(image: Frames) -> bytes:
    """One uint8 frame [H, W, 3] as the bytes of a PNG file."""
    import av

    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = image.shape[1], image.shape[0], "rgb24"
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    frame.pts = 0
    context.time_base = frame.time_base = _ONE_SECOND
    return b"".join(bytes(packet) for packet in (*context.encode(frame), *context.encode(None)))


def _require_frames_only(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"cannot write PNG frames into {folder}: a file has that name", fix="choose another name")
    strange = sorted(entry.name for entry in folder.iterdir() if not FRAME.fullmatch(entry.name))
    if strange:
        raise InputError(
            f"the folder {folder} holds {strange[0]!r}, which is not a frame, so it will not be replaced",
            fix="choose another name or empty the folder",
        )
