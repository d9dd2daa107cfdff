"""Rows of `turbort doctor`: what an Ascend card needs. Nothing vendor-made is imported before a row runs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from turbort import Check, Outcome, Unavailable, UnavailableError
from turbort_ascend.build import compiler
from turbort_ascend.device import find_devices, has_triton


def checks() -> Iterator[Check]:
    """All rows."""
    yield Check("ascend device", _device)
    yield Check("ascend pool", _pool)
    yield Check("ascend triton", _triton)


def _installed() -> str | None:
    try:
        return metadata.version("torch-npu")
    except metadata.PackageNotFoundError:
        return None


def _device() -> Outcome:
    version = _installed()
    if version is None:
        return Outcome("off", "torch-npu is not installed")
    found = find_devices()
    if isinstance(found, Unavailable):
        return Outcome("warn", found.reason, found.fix)
    import torch

    names = ", ".join(device.name for device in found)
    release = torch.__version__.partition("+")[0]
    if version.split(".post")[0] != release:
        return Outcome("warn", f"{names}; torch-npu {version} with torch {release}", f"pip install torch-npu=={release}")
    return Outcome("ok", f"{names}; torch-npu {version}")


def _pool() -> Outcome:
    if _installed() is None:
        return Outcome("off", "the AscendCL pool needs torch-npu")
    try:
        return Outcome("ok", f"memory strategy acl-pool compiles with {compiler()}")
    except UnavailableError as error:
        return Outcome("warn", error.message, error.fix)


def _triton() -> Outcome:
    if has_triton():
        return Outcome("ok", f"triton-ascend {metadata.version('triton-ascend')}: INT8 attention and block-scaled linears")
    return Outcome("off", "triton-ascend is not installed: attention stays in 16 bits, checkpoints are requantised per channel")
