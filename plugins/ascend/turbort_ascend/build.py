"""Compiling small C files once: a cache keyed by sources, flags and headers. No torch here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from turbort import UnavailableError


def cache_folder() -> Path:
    """Where compiled files are kept: `TURBORT_CACHE`, else `$XDG_CACHE_HOME/turbort`, else `~/.cache/turbort`."""
    own = os.environ.get("TURBORT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "turbort"


def compiler() -> str:
    """The C compiler's path; UnavailableError when there is none."""
    for name in filter(None, (os.environ.get("CC"), "gcc", "cc", "clang")):
        found = shutil.which(name)
        if found:
            return found
    raise UnavailableError("no C compiler was found", fix="install gcc, or set CC; without one use `memory: {strategy: auto}`")


def shared_library(name: str, sources: Sequence[Path], *, include: Sequence[Path] = (), flags: Sequence[str] = ()) -> Path:
    """The shared library made of `sources`, compiled unless an equal one is in the cache.

    Equal means: same sources, flags and include folders. Raises UnavailableError with the compiler's words.
    """
    digest = hashlib.sha256()
    for part in (*(source.read_bytes() for source in sources), *map(str.encode, map(str, (*include, *flags)))):
        digest.update(part)
    target = cache_folder() / "ascend" / digest.hexdigest()[:16] / name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / name
        command = [compiler(), "-O2", "-std=gnu11", "-shared", "-fPIC", f"-Wl,-soname,{name}", *(f"-I{path}" for path in include)]
        command += ["-o", str(made), *map(str, sources), *flags]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            words = run.stderr.strip().splitlines()[:8]
            raise UnavailableError(f"compiling {name} failed", tried=words, fix="check the C compiler and torch-npu's headers")
        os.replace(made, target)  # another process may have made the same file meanwhile; the last one wins
    return target
