"""Memory pools of sessions, and a way to step out of one while a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


class SessionPool:
    """Routes this thread's allocations on one device to a pool of its own, as a context manager.

    Closing a session then gives its memory back whole. A CUDA graph must own the memory it captures, and an outer pool
    would catch those allocations first, so `outside` suspends the pool for that long.
    """

    _active: dict[torch.device, list[SessionPool]] = {}  # noqa: RUF012 - shared on purpose: which pools are entered

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.pool = torch.cuda.MemPool()
        self._scope: AbstractContextManager[Any] | None = None

    def __enter__(self) -> SessionPool:
        self._enter()
        self._active.setdefault(self.device, []).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._active[self.device].remove(self)
        self._leave()

    def _enter(self) -> None:
        self._scope = torch.cuda.use_mem_pool(self.pool, device=self.device)
        self._scope.__enter__()

    def _leave(self) -> None:
        if self._scope is not None:
            self._scope.__exit__(None, None, None)
            self._scope = None

    @classmethod
    @contextmanager
    def outside(cls, device: torch.device) -> Iterator[None]:
        """Allocate from torch's common pool meanwhile."""
        entered = list(cls._active.get(device, ()))
        for pool in reversed(entered):
            pool._leave()
        try:
            yield
        finally:
            for pool in entered:
                pool._enter()
