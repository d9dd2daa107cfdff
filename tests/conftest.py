"""What every test begins with."""

from __future__ import annotations

import os

import pytest

from tests import properties
from tests.little import little  # noqa: F401 - a fixture

# Two pytest workers on two cores: more threads would only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# pytest-xdist gives its workers a width, and a developer may have plugins or profiles of their own set.
for _name in [name for name in os.environ if name in ("COLUMNS", "LINES") or name.startswith("TURBORT_")]:
    del os.environ[_name]

properties.register()

SEED = 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test, with the fixtures that it is the first to need, draws the same numbers: torch picks another seed each time."""
    import torch

    torch.manual_seed(SEED)
