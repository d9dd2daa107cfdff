"""The real torch-npu over the emulated driver, for one chip and two devices; skipped with the reason where it cannot be."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Any

import pytest


def missing() -> str | None:
    """Why these suites cannot run here."""
    if find_spec("torch_npu") is None:
        return "torch-npu is not installed: `make ascend-venv`"
    tools = [name for name in ("gcc", "nm") if shutil.which(name) is None]
    return f"{' and '.join(tools)} not found: apt-get install gcc binutils" if tools else None


@pytest.fixture(scope="session")
def torch() -> Any:
    """torch, with torch_npu loaded over the emulated driver (no arithmetic)."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    os.environ.setdefault("FAKE_ACL_DEVICES", "2")
    from turbort_ascend import emulated

    emulated.start(os.environ.get("TURBORT_ASCEND_CHIP", "Ascend910B3"), arithmetic=False)
    import torch

    return torch


@pytest.fixture
def npu(torch: Any) -> Any:
    """torch.npu with nothing allocated."""
    import gc

    gc.collect()
    torch.npu.set_device(0)
    torch.npu.empty_cache()
    return torch.npu
