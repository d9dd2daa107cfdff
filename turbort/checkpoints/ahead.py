"""Reading ahead: weights are brought from the mapped file into memory by threads while the device takes the ones before.

A mapped file is read when its pages are touched, one page fault at a time, and a device copies from such pages in a single
slow thread. Each weight is touched once, here, by several threads, and waits in pinned memory where the device has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from turbort.checkpoints.dialect import Entry, Value
from turbort.quant.qtensor import QTensor

THREADS = 4
HELD = 1 << 29
"""Bytes that may wait for the device: enough for every thread to hold one of a large model's weights, and no more, because a
driver takes a second to pin and free each 2 GiB (0.53 s to free 1 GiB on an H100's host)."""


def read_ahead(entries: Iterable[tuple[str, Entry]], device: torch.device) -> Iterator[tuple[str, Value]]:
    """The weights in order, each read once. On a CPU nothing is copied: what is bound there reads the mapped file itself."""
    if device.type in ("cpu", "meta"):
        yield from ((name, entry.read()) for name, entry in entries)
        return
    pin = device.type == "cuda"
    waiting: deque[tuple[str, int, Future[Value]]] = deque()
    held = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="turbort-read") as pool:
        try:
            for name, entry in entries:
                size = _bytes(entry)
                while waiting and held + size > HELD:
                    done, length, value = waiting.popleft()
                    held -= length
                    yield done, value.result()
                waiting.append((name, size, pool.submit(_fetched, entry.read, pin)))
                held += size
            while waiting:
                done, _, value = waiting.popleft()
                yield done, value.result()
        finally:
            for _, _, value in waiting:
                value.cancel()


def _bytes(entry: Entry) -> int:
    """What the value takes in memory, roughly: codes are one byte each."""
    return torch.Size(entry.shape).numel() * (1 if entry.scheme else entry.dtype.itemsize)


def _fetched(read: Callable[[], Value], pin: bool) -> Value:
    with torch.inference_mode():
        value = read()
        return value.mapped(lambda part: _copied(part, pin)) if isinstance(value, QTensor) else _copied(value, pin)


def _copied(tensor: Tensor, pin: bool) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin).copy_(tensor)
