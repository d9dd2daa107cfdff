"""One process on the emulated driver with emulated arithmetic, and the small random model of turbort's own tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # the driver is loaded first; torch must not look for it on its own
_spec = importlib.util.spec_from_file_location("turbort_tests_conftest", Path(__file__).parents[4] / "tests" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)
little = _shared.little


@pytest.fixture(scope="session")
def torch() -> Any:
    """torch with emulated npu tensors."""
    if find_spec("torch_npu") is None:
        pytest.skip("torch-npu is not installed: `make ascend-venv`")
    if shutil.which("gcc") is None:
        pytest.skip("gcc not found: apt-get install gcc binutils")
    from turbort_ascend import emulated

    emulated.start("Ascend910B3")
    import torch

    return torch


@pytest.fixture(scope="session")
def registry(torch: Any) -> Any:
    from ascend_host.plans import registry

    return registry()
