"""Writing while the next chunk is decoded: a thread that owns a writer and takes chunks in order, with room for few."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from turbort.io.frames import Arriving

if TYPE_CHECKING:
    from torch import Tensor

    from turbort.io.writer import VideoWriter

ROOM = 2
"""Chunks on the host at once: one that is written and one that arrives."""
POLL = 0.1
"""Seconds after which a wait looks up: Ctrl-C that arrives just before the wait begins does not end it by itself."""
UNSEEN = 5
"""Times that a wait looks up before it gives a thread up that has not begun."""


def write_behind(writer: VideoWriter, chunks: Iterable[Tensor]) -> None:
    """Write `chunks`, pixels [3, T, H, W] in [-1, 1], each while the next one is made.

    Opens `writer`, gives it the frames and finishes the file, all on a thread of its own; `chunks` is iterated here, and waits
    while `ROOM` chunks are not yet written. When this returns, the video is there. What the writer raises is raised here, as it
    was, and no frame is written after it. An exception of `chunks`, or Ctrl-C at any point, ends the thread after at most one
    more frame and leaves no file. Only the thread touches the writer, so even a second Ctrl-C at the wrong moment cannot delete
    a file under an encoder that still writes.
    """
    # A function and not a context manager: Ctrl-C may arrive on the way into `__exit__`, which then never runs.
    other = _Writing(writer)
    try:
        other.thread.start()
        for pixels in chunks:
            while not other.wait():
                pass
            other.raise_error()
            other.queue.put(Arriving(pixels))
        other.queue.put(None)
        while not other.ended:
            other.wait()
    except BaseException:
        # Neither statement calls Python code, and only there could another Ctrl-C come between.
        other.stopped = True
        other.queue.put(None)
        # Through any further Ctrl-C: one is being raised already, and the file is deleted within a frame's time. A thread that
        # nobody has seen to start may be about to, or may never: `start` was interrupted, or failed.
        left = UNSEEN
        while not other.ended and (left or other.thread.ident is not None):
            with contextlib.suppress(KeyboardInterrupt):
                if not other.wait():
                    left = max(left - 1, 0)
        raise
    other.raise_error()


class _Stopped(Exception):
    """Leaves the writer's block, so that it deletes what it wrote."""


class _Writing:
    """The thread's side, and what both sides share.

    Both wait on `SimpleQueue` alone, which is one C function: Ctrl-C inside `Event.wait` and `Semaphore.acquire` can leave their
    locks as they must not be, and an interrupted `Thread.join` marks a thread as ended that is not (CPython up to 3.12).
    """

    def __init__(self, writer: VideoWriter) -> None:
        self.writer = writer
        self.queue: SimpleQueue[Arriving | None] = SimpleQueue()
        self.stopped = False
        self.ended = False
        self.thread = Thread(target=self._run, name="turbort-writer")
        self._news: SimpleQueue[None] = SimpleQueue()
        for _ in range(ROOM):
            self._news.put(None)
        self._error: BaseException | None = None

    def wait(self) -> bool:
        """Whether, within `POLL` seconds, there is room for another chunk or the thread has ended."""
        try:
            self._news.get(timeout=POLL)
        except Empty:
            return False
        return True

    def raise_error(self) -> None:
        if self._error is not None:
            # Kept in one place only, or its traceback would hold on to this object, and with it to the frames.
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        try:
            with self.writer:
                while (chunk := self.queue.get()) is not None:
                    self._write(chunk)
                    del chunk
                    self._news.put(None)
                self._check()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by whoever hands over frames
            self._error = error
        finally:
            self.ended = True
            self._news.put(None)

    def _write(self, chunk: Arriving) -> None:
        self._check()
        for frame in chunk.frames():
            self._check()
            self.writer.write(frame[None])

    def _check(self) -> None:
        if self.stopped:
            raise _Stopped
