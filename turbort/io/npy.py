"""Raw frames in NumPy's format: uint8 [T, H, W, 3], readable with `numpy.load(path, mmap_mode="r")`."""

from __future__ import annotations

import errno
import io
import os
import shutil
from typing import TYPE_CHECKING

from turbort.io.atomic import Sink
from turbort.io.writer import VideoWriter

if TYPE_CHECKING:
    from turbort.io.writer import Frames


class NpyWriter(VideoWriter):
    """Streams frames behind a header that is completed at the end, when their number is known."""

    _sink: Sink | None = None

    def _open(self) -> None:
        needed = (self.frames_hint or 0) * self.height * self.width * 3
        if needed > shutil.disk_usage(self.path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._sink = Sink(self.path)
        self._sink.write(self._header(0))

    def _header(self, frames: int) -> bytes:
        """NumPy pads headers so that their length does not depend on the first axis."""
        from numpy.lib import format as npy

        buffer = io.BytesIO()
        shape = (frames, self.height, self.width, 3)
        npy.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return buffer.getvalue()

    def _append(self, frames: Frames) -> None:
        import numpy as np

        assert self._sink is not None
        self._sink.write(np.ascontiguousarray(frames).data)

    def _commit(self) -> None:
        assert self._sink is not None
        self._sink.seek(0)
        self._sink.write(self._header(self.frames))
        self._sink.commit()

    def _discard(self) -> None:
        if self._sink is not None:
            self._sink.discard()

    def _written(self) -> int:
        return self._sink.written if self._sink else 0
