"""The AscendCL pool as a context: what a session allocates inside comes from `pool.c`.

The pool hangs on a torch-npu MemPool, never on `change_current_allocator`: with a pluggable allocator as the current
one, torch-npu 2.13.0 runs off the end of `getDeviceStats()` and `memory_allocated()` kills the process.
"""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from turbort import Device, InputError, UnavailableError
from turbort_ascend.build import shared_library

log = logging.getLogger("turbort")

MODE = "TURBORT_ASCEND_POOL"
"""`malloc` (default), or `soma` for the driver's stream-ordered pool."""
LIMIT = "TURBORT_ASCEND_POOL_LIMIT"
"""Most MiB a pool may hold on a device; no cap by default."""
KEEP = "TURBORT_ASCEND_POOL_KEEP"
"""MiB of freed segments kept for the next session; 0 by default."""

_FIELDS = ("requests", "reused", "frees", "refused", "live", "peak", "reserve", "limit")
_immortal: list[Any] = []


class _Stats(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in _FIELDS]


@cache
def pool_library() -> Path:
    """`pool.c`, compiled against the AscendCL headers in the torch-npu wheel."""
    import torch_npu  # type: ignore[import-not-found,unused-ignore]

    headers = Path(torch_npu.__file__).parent / "include"
    return shared_library(
        "libturbort_pool.so", [Path(__file__).with_name("pool.c")], include=[headers], flags=["-ldl", "-lpthread"]
    )


@cache
def _functions() -> Any:
    library = ctypes.CDLL(str(pool_library()))
    library.tb_configure.argtypes = (ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64)
    library.tb_trim.argtypes = (ctypes.c_int, ctypes.c_uint64)
    library.tb_message.restype = ctypes.c_char_p
    return library


def _mebibytes(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdecimal():
        raise InputError(f"{name}={text!r} is no number of MiB", fix=f"set {name} to a whole number, or unset it")
    return int(text) << 20


class AclPool:
    """Allocations of this thread on one device come from the pool while the context is open.

    Tensors may outlive the context; their memory goes back when they are freed. Raises UnavailableError where no C
    compiler is found or the driver lacks the mode asked for.
    """

    def __init__(self, device: Device, mode: str | None = None, *, limit: int | None = None, keep: int | None = None) -> None:
        self.index = int(device.torch_name.partition(":")[2] or 0)
        self.mode = mode or os.environ.get(MODE) or "malloc"
        if self.mode not in ("malloc", "soma"):
            raise InputError(f"{MODE}={self.mode!r} is no pool mode", tried=["allowed: malloc, soma"])
        self.limit = _mebibytes(LIMIT) if limit is None else limit
        self.keep = _mebibytes(KEEP) if keep is None else keep
        self._exit = ExitStack()
        self._pool: Any = None

    def __enter__(self) -> AclPool:
        import torch

        npu: Any = torch.npu  # type: ignore[attr-defined]
        npu.init()
        prefix = "tb_soma_" if self.mode == "soma" else "tb_"
        if self.mode == "soma" and not _functions().tb_has_soma():
            raise UnavailableError("this driver has no stream-ordered memory pools", fix=f"set {MODE}=malloc")
        _functions().tb_configure(self.index, self.limit, self.keep)
        allocator = npu.memory.NPUPluggableAllocator(str(pool_library()), f"{prefix}malloc", f"{prefix}free")
        # Tensors may outlive the pool, and freeing them calls into the allocator.
        _immortal.append(allocator)
        self._pool = npu.MemPool(allocator.allocator())
        self._exit.enter_context(npu.use_mem_pool(self._pool, self.index))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()
        self._pool = None
        if self.stats()["refused"]:
            log.warning("the AscendCL pool refused memory: %s", self.message())

    def stats(self) -> dict[str, int]:
        """Counters of this device since the process began: requests, reused, frees, refused; bytes live, peak, reserve, limit."""
        found = _Stats()
        _functions().tb_stats(self.index, ctypes.byref(found))
        return {name: int(getattr(found, name)) for name in _FIELDS}

    def trim(self, keep: int = 0) -> None:
        """Give kept segments back to the driver until at most `keep` bytes are held in reserve."""
        _functions().tb_trim(self.index, keep)

    def message(self) -> str:
        """Why the last request was refused."""
        return str(_functions().tb_message().decode())
