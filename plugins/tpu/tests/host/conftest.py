"""These tests need jax; without it each says so. XLA:CPU stands in for a TPU v5e."""

import os
from importlib.util import find_spec

import pytest

from tests.little import little  # noqa: F401 - a fixture

for _name in [name for name in os.environ if name.startswith("TURBORT_")]:  # what the developer has set
    del os.environ[_name]
os.environ["TURBORT_TPU_EMULATE"] = "v5e"
os.environ["TURBORT_TPU_CACHE"] = ""
os.environ.setdefault("JAX_PLATFORMS", "cpu")
collect_ignore_glob = [] if find_spec("jax") else ["test_*.py"]


def pytest_report_header():
    if not find_spec("jax"):
        pytest.exit('jax is not installed: pip install "jax[tpu]==0.10.2"', returncode=0)
