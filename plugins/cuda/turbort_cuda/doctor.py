"""Rows of `turbort doctor` for NVIDIA GPUs."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from turbort.checks import Check, Outcome

TRITON = (3, 6)


def checks() -> list[Check]:
    """One row for Triton; the cards have theirs from turbort itself."""
    return [Check("triton", _triton)]


def _triton() -> Outcome:
    if importlib.util.find_spec("triton") is None:
        return Outcome("off", "not installed; the CUDA kernels need it", "pip install triton")
    version = metadata.version("triton")
    release = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if release < TRITON:
        return Outcome("warn", f"{version} is older than {TRITON[0]}.{TRITON[1]}", "pip install --upgrade triton")
    return Outcome("ok", version)
