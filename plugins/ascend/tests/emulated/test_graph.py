"""Graph steps on the emulated driver: replays read the graph's inputs at their addresses, as a device would."""

from __future__ import annotations

from typing import Any


def test_replays_compute_from_new_inputs_and_results_stay(torch: Any) -> None:
    from turbort_ascend.graph import GraphStep

    def step(x: Any, context: Any) -> Any:
        return x * 2 + context[0]

    compiled = GraphStep(step)
    kept = []
    for seed in range(3):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        c = torch.full((8,), float(seed))
        kept.append((compiled(x.to("npu"), [c.to("npu")]), x * 2 + c))
    for got, wanted in kept:
        assert torch.allclose(got.cpu(), wanted)


def test_another_shape_is_another_graph(torch: Any) -> None:
    from ascend_host.driver import stats
    from turbort_ascend.graph import GraphStep

    compiled = GraphStep(lambda x: x + 1)
    before = stats()["captures"]
    for size in (4, 8, 4, 8):
        assert torch.equal(compiled(torch.zeros(size, device="npu")).cpu(), torch.ones(size))
    assert stats()["captures"] == before + 2


def test_an_op_without_a_reference_is_an_error(torch: Any) -> None:
    import pytest

    with pytest.raises(RuntimeError, match="no reference for npu::npu_swiglu"):
        torch.ops.npu.npu_swiglu(torch.zeros(4, 8, device="npu"))
