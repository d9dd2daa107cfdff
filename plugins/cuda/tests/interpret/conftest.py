"""Kernels under Triton's interpreter, on small cases, against the reference. `make cuda-interpret` sets TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest

REASON = "set TRITON_INTERPRET=1 before Python starts (`make cuda-interpret` does)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # numpy warns where exp overflows to infinity, as it does on a GPU: x / (1 + inf) is the 0 that GELU wants.
        item.add_marker(pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"))
    if os.environ.get("TRITON_INTERPRET") != "1":
        for item in items:
            if "interpret" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=REASON))
