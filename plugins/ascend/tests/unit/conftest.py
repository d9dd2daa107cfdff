"""Devices and a registry for tests that need no vendor package."""

from __future__ import annotations

import pytest
import turbort_ascend
from turbort_ascend.device import OPS, make_device

from turbort.backend import Device
from turbort.registry import Registry

EVERYTHING = frozenset(OPS) | {"npugraph"}
CHIPS = {"310P": "Ascend310P3", "A2": "Ascend910B3", "A3": "Ascend910_9391", "A5": "Ascend950PR_9589"}


def chip(family: str) -> Device:
    """A device of this family with every vendor op."""
    return make_device(CHIPS[family], memory=64 << 30, features=EVERYTHING)


@pytest.fixture(scope="session")
def registry() -> Registry:
    found = Registry()
    return found if "ascend" in found.backends else Registry(extra=[turbort_ascend])
