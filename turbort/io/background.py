"""Writing while the next chunk is decoded: a thread that owns a writer and takes chunks in order, with room for few."""

from __future__ import annotations

import contextlib
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from types import TracebackType
from typing import TYPE_CHECKING

from turbort.io.frames import Arriving

if TYPE_CHECKING:
    from torch import Tensor

    from turbort.io.writer import VideoWriter

ROOM = 2
"""Chunks on the host at once: one that is written and one that arrives."""


class _Stopped(Exception):
    """Leaves the writer's block, so that it deletes what it wrote."""


class Background:
    """Opens `writer`, gives it what `put` is given and finishes the file, all on a thread of its own.

    Use it as a context manager. When the block ends, the video is there, or what went wrong is raised: what the writer
    raises comes from the next `put` or from the end of the block, as it was, and no frame is written after it. An exception
    in the block, Ctrl-C included, ends the thread after at most one more frame and leaves no file. Only the thread touches
    the writer, so even a second Ctrl-C at the wrong moment cannot delete a file under an encoder that still writes.
    """

    def __init__(self, writer: VideoWriter) -> None:
        self.writer = writer
        self._room = Semaphore(ROOM)
        self._queue: SimpleQueue[Arriving | None] = SimpleQueue()
        self._stopped = Event()
        # `Thread.join` that Ctrl-C interrupts marks a thread as ended that is not (CPython up to 3.12), so the thread says it.
        self._ended = Event()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="turbort-writer")

    def put(self, pixels: Tensor) -> None:
        """Hand over pixels [3, T, H, W] in [-1, 1]; waits while `ROOM` chunks are not yet written."""
        self._room.acquire()
        self._raise()
        self._queue.put(Arriving(pixels))

    def __enter__(self) -> Background:
        try:
            self._thread.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is not None:
                self._stopped.set()
            self._queue.put(None)
            self._ended.wait()
        except BaseException:
            self._stop()
            # Through any further Ctrl-C: one is being raised already, and the file is deleted within a frame's time.
            while not self._ended.is_set():
                with contextlib.suppress(KeyboardInterrupt):
                    self._ended.wait()
            raise
        if kind is None:
            self._raise()

    def _stop(self) -> None:
        self._stopped.set()
        self._queue.put(None)

    def _raise(self) -> None:
        if self._error is not None:
            # Kept in one place only, or its traceback would hold on to this object, and with it to the frames.
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        try:
            with self.writer:
                while (chunk := self._queue.get()) is not None:
                    self._write(chunk)
                    del chunk
                    self._room.release()
                self._check()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by whoever hands over frames
            self._error = error
        finally:
            self._ended.set()
            # For a `put` that waits: nothing will be taken any more.
            self._room.release()

    def _write(self, chunk: Arriving) -> None:
        self._check()
        for frame in chunk.frames():
            self._check()
            self.writer.write(frame[None])

    def _check(self) -> None:
        if self._stopped.is_set():
            raise _Stopped
