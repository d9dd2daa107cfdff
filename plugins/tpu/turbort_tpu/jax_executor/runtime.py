"""JAX's settings for this backend: the cache of compiled programs on disk, and what the device says of its memory."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import jax

from turbort.backend import MemoryStats

CACHE = "TURBORT_TPU_CACHE"


@cache
def start() -> None:
    """Keep compiled programs on disk (`TURBORT_TPU_CACHE`, default `~/.cache/turbort/tpu`; empty: not at all).

    JAX keys each program by its own text, the compiler's version and the device, so a changed kernel, shape, plan or
    libtpu never meets a stale program.
    """
    folder = os.environ.get(CACHE, str(Path.home() / ".cache" / "turbort" / "tpu"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        # XLA:CPU's own caches embed the host's features, and its loader complains on stderr for each.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def device_memory(total: int | None) -> MemoryStats:
    """Bytes in use, peak and limit of the first device; None where the runtime does not say."""
    found = jax.devices()[0].memory_stats() or {}
    return MemoryStats(found.get("bytes_in_use"), found.get("peak_bytes_in_use"), found.get("bytes_limit") or total)
