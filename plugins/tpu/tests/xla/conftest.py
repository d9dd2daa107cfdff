"""torch_xla 2.9 on PJRT CPU stands in for a TPU v5e; without torch_xla each test says so."""

import os
from importlib.util import find_spec

import pytest

os.environ.update(TURBORT_TPU_EMULATE="v5e", TURBORT_TPU_EXECUTOR="torch_xla", PJRT_DEVICE="CPU", JAX_PLATFORMS="cpu")
collect_ignore_glob = [] if find_spec("torch_xla") else ["test_*.py"]


def pytest_report_header():
    if not find_spec("torch_xla"):
        pytest.exit("torch_xla is not installed: make tpu-xla brings it", returncode=0)
