"""Offline compilation needs Triton, and no GPU."""

from __future__ import annotations

import pytest

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
