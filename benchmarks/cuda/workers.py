"""Running many small tasks in worker processes, so that one that crashes or hangs costs itself and nothing else.

An illegal memory access ends every later call of its process, a deadlock never returns, and compiling uses one core. Each worker
is a process of its own; a task is a list of items, and the worker answers each item with one line of JSON. When a worker dies or
falls silent, the item it was at is reported as lost, a fresh worker takes what is left of the task, and the others go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ENDING = 30.0
"""Seconds that a worker whose pipe has closed gets to end, so that its exit code is its own."""
SILENCE = 75.0
"""Seconds without an answer after which a worker counts as hung; a first import and the slowest compile take less."""


class Worker:
    """One process: takes tasks as lines of JSON, answers with lines of JSON, keeps its messages in a file."""

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            env={**os.environ, **environment},
            cwd=Path(__file__).resolve().parent.parent.parent,
        )
        self._buffer = b""
        self._closed = False

    def send(self, task: Row) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, until: float) -> Row | None:
        """The next answer; None when the process has ended or said nothing until then (a time of `time.monotonic`)."""
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            part = os.read(pipe, 1 << 16)
            if not part:
                self._closed = True
                return None
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: Row = json.loads(line)
        return found

    def end(self) -> str:
        """Kill it; how it ended, and the last line it wrote."""
        if self._closed:  # it is ending by itself, which on a busy machine takes a while after its pipe has closed
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING)
        hung = self.process.poll() is None
        self.process.kill()
        code = self.process.wait()
        self.messages.seek(0)
        lines = [line for line in self.messages.read().decode(errors="replace").splitlines() if line.strip()]
        for file in (self.messages, self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                file.close()  # type: ignore[union-attr]
        return ("no answer" if hung else f"exit code {code}") + (f": {lines[-1][:300]}" if lines else "")


class Pool:
    """`count` workers on one queue. `run` returns the answers in the order they came; `lost` names what nobody answered."""

    def __init__(
        self,
        module: str,
        count: int,
        devices: int,
        seconds: float,
        each: Callable[[Row], None] | None = None,
        *,
        silence: float = SILENCE,
    ) -> None:
        self.silence = silence
        self.module, self.count, self.devices = module, count, max(1, devices)
        self.deadline = time.monotonic() + seconds
        self.each = each or (lambda row: None)
        self.rows: list[Row] = []
        self._queue: deque[Row] = deque()
        self._lock = threading.Lock()

    def run(self, tasks: Iterable[Row]) -> list[Row]:
        """Each task has `items`; every item gets one row with `name` and `verdict` (`ok`, `FAIL`, `lost`, `not run`, ...)."""
        self._queue.extend(tasks)
        threads = [threading.Thread(target=self._serve, args=(index,)) for index in range(min(self.count, len(self._queue)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for task in self._queue:
            for item in task["items"]:
                self._add({"name": item, "verdict": "not run"})
        return self.rows

    def _add(self, row: Row) -> None:
        with self._lock:
            self.rows.append(row)
            self.each(row)

    def _serve(self, index: int) -> None:
        environment = {"OMP_NUM_THREADS": "1"}
        if self.devices > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(index % self.devices)
        worker: Worker | None = None
        while time.monotonic() < self.deadline:
            with self._lock:
                if not self._queue:
                    break
                task = self._queue.popleft()
            left = list(task["items"])
            while left and time.monotonic() < self.deadline:
                if worker is None:
                    worker = Worker(self.module, environment)
                left, alive = self._work(worker, {**task, "items": left})
                if not alive:
                    worker = None
            for item in left:
                self._add({"name": item, "verdict": "not run"})
        if worker is not None:
            worker.end()

    def _work(self, worker: Worker, task: Row) -> tuple[list[str], bool]:
        """What is left of the task, and whether the worker can go on."""
        left = list(task["items"])
        with contextlib.suppress(OSError):  # it has ended: there is no answer either
            worker.send(task)
        while left:
            until = min(time.monotonic() + self.silence, self.deadline)
            row = worker.answer(until)
            if row is None:
                late = time.monotonic() >= self.deadline
                how = worker.end()
                self._add({"name": left[0], "verdict": "not run" if late else "lost", "error": how})
                return left[1:], False
            left.remove(row["name"])
            self._add(row)
            if row.get("poisoned"):
                worker.end()
                return left, False
        return left, True
