"""mp4 and gif through PyAV. The same frames give the same bytes: fixed threads, no dates, no encoder banner."""

from __future__ import annotations

import contextlib
import errno
from abc import abstractmethod
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.errors import InputError, TurbortError
from turbort.io.atomic import Sink
from turbort.io.writer import VideoWriter

if TYPE_CHECKING:
    from turbort.io.writer import Frames

# FFmpeg's numbers for colour matrices, primaries and transfer curves (ITU-T H.273).
BT709, BT601, SRGB = 1, 6, 13
# x264 makes other bytes with another number of threads, so the number must not follow the machine.
# Preset and CRF: docs/adr/0015-video-is-written-behind-the-decoder.md, measured by benchmarks/encoder.py.
X264 = {"crf": "13", "preset": "veryfast", "threads": "4"}


class _Pipe:
    """The part of a `Sink` that PyAV may see: without `close`, so that closing a container does not end the file.

    Once it is `dead` everything succeeds and nothing happens. A container that is closed without its file seeks and writes
    several times, and PyAV prints all exceptions of those calls but the last.
    """

    dead = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def tell(self) -> int:
        return 0 if self.dead else self._sink.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return max(0, offset) if self.dead else self._sink.seek(offset, whence)

    def write(self, data: bytes) -> int:
        if self.dead:
            return len(data)
        try:
            return self._sink.write(data)
        except KeyboardInterrupt as stop:
            # PyAV can hand on an Exception only; the sink keeps the interrupt and the writer raises it after the call.
            raise OSError(errno.EINTR, "interrupted") from stop


class EncodedWriter(VideoWriter):
    """A container with one video stream, written through a `Sink`."""

    format: str
    codec: str
    _sink: Sink | None = None
    _pipe: _Pipe | None = None
    _container: Any = None
    _stream: Any = None

    def _open(self) -> None:
        import av

        if self.codec not in av.codecs_available:
            raise TurbortError(
                f"cannot write {self.given}: the installed PyAV {av.__version__} has no {self.codec} encoder",
                fix="pip install --force-reinstall av, or write another format (.npy, .png)",
            )
        self._sink = Sink(self.path)
        self._pipe = _Pipe(self._sink)
        self._container = av.open(self._pipe, "w", format=self.format, container_options={"fflags": "+bitexact"})
        self._container.metadata.update(self.metadata)
        self._stream = self._add_stream(self._container)

    @abstractmethod
    def _add_stream(self, container: Any) -> Any:
        """Add and configure the video stream."""

    def _prepared(self, frame: Any) -> Iterable[Any]:
        """The frames to encode for one RGB frame."""
        return (frame,)

    def _pts(self, index: int) -> tuple[int, Fraction]:
        """Presentation time of frame `index` and the unit it counts in."""
        return index, 1 / self.fps

    def _append(self, frames: Frames) -> None:
        import av

        for offset, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = self._pts(self.frames + offset)
            for prepared in self._prepared(frame):
                self._mux(prepared)

    def _mux(self, frame: Any) -> None:
        assert self._sink is not None
        try:
            self._container.mux(self._stream.encode(frame))
        finally:
            # What went wrong inside the write callback, before what the encoder made of it.
            self._sink.check()

    def _commit(self) -> None:
        assert self._sink is not None
        self._mux(None)
        self._container.close()
        self._sink.commit()

    def _discard(self) -> None:
        if self._pipe is not None:
            self._pipe.dead = True
        if self._sink is not None:
            self._sink.discard()
        if self._container is not None:
            # Closing writes the trailer, which goes nowhere.
            with contextlib.suppress(Exception):
                self._container.close()

    def _written(self) -> int:
        return self._sink.written if self._sink else 0


class Mp4Writer(EncodedWriter):
    """H.264 in mp4, 4:2:0, CRF 13. `metadata` keys `title` and `comment` are kept in the file."""

    format = "mp4"
    codec = "libx264"

    def prepare(self, path: str | Path) -> Path:
        if self.width % 2 or self.height % 2:
            raise InputError(
                f"mp4 stores colour at half resolution, so {self.width}x{self.height} has an odd side it cannot hold",
                fix="use an even width and height, or write .png or .npy",
            )
        return super().prepare(path)

    def _add_stream(self, container: Any) -> Any:
        stream = container.add_stream(self.codec, rate=self.fps, options={**X264, "flags": "+bitexact"})
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self.fps
        context.colorspace = matrix_of(self.height)
        context.color_primaries, context.color_trc, context.color_range = BT709, SRGB, 1
        return stream

    def _prepared(self, frame: Any) -> Iterable[Any]:
        converted = to_yuv420p(frame, self.height)
        converted.pts, converted.time_base = frame.pts, frame.time_base
        return (converted,)


def to_yuv420p(frame: Any, height: int) -> Any:
    """An RGB frame as 4:2:0 in video range, with the matrix that players assume for pictures of this height.

    Bilinear chroma is what a decoder undoes; the default (bicubic) overshoots at the edges of flat colours. One thread:
    one run in thousands came out with other bytes, and automatic threads were the one thing here that may differ.
    """
    return frame.reformat(
        format="yuv420p", dst_colorspace=matrix_of(height), dst_color_range=1, interpolation="BILINEAR", threads=1
    )


def matrix_of(height: int) -> int:
    """BT.709 for HD and BT.601 below: players that ignore the file's tag assume these."""
    return BT709 if height >= 720 else BT601


class GifWriter(EncodedWriter):
    """Animated GIF that loops, with a palette of 256 colours per frame."""

    format = "gif"
    codec = "gif"
    _unit = Fraction(1, 100)
    _entry: Any = None
    _exit: Any = None

    def prepare(self, path: str | Path) -> Path:
        if self.fps > 50:
            raise InputError(
                f"gif counts in hundredths of a second and players skip frames above 50 per second, got {float(self.fps):g}",
                fix="lower --fps or write .mp4",
            )
        return super().prepare(path)

    def _add_stream(self, container: Any) -> Any:
        stream = container.add_stream(self.codec, rate=100)
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "pal8"
        stream.codec_context.time_base = self._unit
        self._build_palette_graph()
        return stream

    def _build_palette_graph(self) -> None:
        """rgb24 -> pal8 with an own palette per frame, so that frames can be written as they come."""
        import av
        import av.filter

        graph = av.filter.Graph()
        self._entry = graph.add_buffer(width=self.width, height=self.height, format=av.VideoFormat("rgb24"), time_base=self._unit)
        self._exit = graph.add("buffersink")
        split, make, use = graph.add("split"), graph.add("palettegen", "stats_mode=single"), graph.add("paletteuse", "new=1")
        self._entry.link_to(split)
        split.link_to(make, 0, 0)
        split.link_to(use, 1, 0)
        make.link_to(use, 0, 1)
        use.link_to(self._exit)
        graph.configure()
        self._graph = graph

    def _pts(self, index: int) -> tuple[int, Fraction]:
        return round(index / self.fps / self._unit), self._unit

    def _prepared(self, frame: Any) -> Iterable[Any]:
        self._entry.push(frame)
        return (self._exit.pull(),)
