"""Offline compilation needs Triton, and no GPU. The modules here are imported by their folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

collect_ignore: list[str] = []
try:
    import triton
except ImportError:
    triton = None  # type: ignore[assignment]


def pytest_report_header() -> str:
    return "triton: " + ("not installed, so every compile test is skipped" if triton is None else triton.__version__)


@pytest.fixture(autouse=True, scope="session")
def _needs_triton() -> None:
    if triton is None:
        pytest.skip("triton is not installed; `pip install triton` compiles without a GPU")
