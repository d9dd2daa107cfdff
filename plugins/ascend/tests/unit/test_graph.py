"""Which steps may become graphs."""

from __future__ import annotations

import pytest
from torch import nn
from turbort_ascend.backend import Ascend
from turbort_ascend.device import OPS, make_device
from turbort_ascend.graph import GraphStep, uncapturable
from turbort_ascend.table import kernel_table

from turbort import ops
from turbort.op import slot, slots


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = slot(ops.attention, "attn.cross")

    def forward(self, q: object) -> object:
        return self.attention(q, q, q)


def bound(kernel: str) -> Step:
    step = Step()
    slots(step)["attention"].bind(ops.attention.reference, provider=kernel, precision="bf16")
    return step


def test_a_step_with_a_kernel_that_the_vendor_bars_stays_eager() -> None:
    assert uncapturable(bound("ascend/fusion"), kernel_table()) == ["attention:ascend/fusion"]
    device = make_device("Ascend910B3", features=frozenset(OPS) | {"npugraph"})
    step = bound("ascend/fusion")
    assert Ascend().compile_step(step, device) is step


def test_other_steps_become_graphs_where_the_device_has_them() -> None:
    device = make_device("Ascend910B3", features=frozenset(OPS) | {"npugraph"})
    assert isinstance(Ascend().compile_step(bound("ascend/fused-infer"), device), GraphStep)
    step = bound("ascend/fused-infer")
    assert Ascend().compile_step(step, make_device("Ascend310P3", features=frozenset({"npugraph"}))) is step


def test_graphs_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    device = make_device("Ascend910B3", features=frozenset(OPS) | {"npugraph"})
    step = bound("ascend/fused-infer")
    monkeypatch.setenv("TURBORT_ASCEND_GRAPH", "0")
    assert Ascend().compile_step(step, device) is step
