"""Graphed steps and session pools, as far as they can be tested without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
from turbort_cuda.graph import GraphedStep, _Captured
from turbort_cuda.pool import SessionPool

from turbort import ops
from turbort.op import slot


def test_tensors_of_another_device_run_as_they_are() -> None:
    step = GraphedStep(lambda x, scale: x * scale, "cuda:0")
    assert torch.equal(step(torch.ones(3), 2.0), torch.full((3,), 2.0))
    assert step.refused is None


def test_inputs_are_copied_into_the_static_tensors() -> None:
    static = [torch.zeros(2), 3, torch.zeros(2, dtype=torch.int64), None]
    captured = _Captured(graph=None, inputs=static, output=None)  # type: ignore[arg-type]
    kept = [static[0], static[2]]
    captured.load([torch.ones(2), 3, torch.tensor([4, 5]), None])
    assert kept[0].tolist() == [1, 1]
    assert kept[1].tolist() == [4, 5]


class Stub:
    """Stands in for torch.cuda.CUDAGraph: replaying runs nothing, so the output keeps what capture wrote."""

    begun: ClassVar[list[dict[str, Any]]] = []

    def replay(self) -> None:
        pass

    def capture_begin(self, **options: Any) -> None:
        self.begun.append(options)

    def capture_end(self) -> None:
        pass


def test_a_step_is_captured_once_per_shape_and_its_result_is_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    step = GraphedStep(lambda x: x, "cuda:0")
    monkeypatch.setattr("turbort_cuda.graph._capturable", lambda leaves, device: True)
    made: list[Any] = []

    def capture(self: GraphedStep, leaves: list[Any], form: Any, shape: Any) -> _Captured:
        made.append(leaves[0].shape)
        static = [leaf.clone() for leaf in leaves]
        return _Captured(Stub(), static, static[0])  # type: ignore[arg-type]

    monkeypatch.setattr(GraphedStep, "_capture", capture)
    first = step(torch.full((2,), 1.0))
    second = step(torch.full((2,), 2.0))
    assert (first.tolist(), second.tolist()) == ([1, 1], [2, 2])
    step(torch.zeros(3))
    assert made == [(2,), (3,)]


def test_a_step_that_cannot_be_captured_runs_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    step = GraphedStep(lambda x: calls.append(1) or x, "cuda:0")
    monkeypatch.setattr("turbort_cuda.graph._capturable", lambda leaves, device: True)

    def refuse(self: GraphedStep, leaves: list[Any], form: Any, shape: Any) -> None:
        self.refused = "no"

    monkeypatch.setattr(GraphedStep, "_capture", refuse)
    assert step(torch.ones(1)).item() == 1
    assert step(torch.ones(1)).item() == 1
    assert len(calls) == 2


class Sites:
    """Stands in for a switchboard."""

    def __init__(self) -> None:
        self.key: frozenset[str] = frozenset()
        self.seen: list[bool] = []
        self.every = False

    @contextmanager
    def everything_promoted(self) -> Iterator[None]:
        self.every = True
        yield
        self.every = False


def test_each_set_of_promoted_sites_has_a_graph_of_its_own_and_warms_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = Sites()
    step = GraphedStep(lambda x: sites.seen.append(sites.every) or x, "cuda:0", sites)
    monkeypatch.setattr("turbort_cuda.graph._capturable", lambda leaves, device: True)
    made: list[Any] = []

    def capture(self: GraphedStep, leaves: list[Any], form: Any, shape: Any) -> _Captured:
        self._warm_up(leaves, {}, shape)
        made.append(sites.key)
        return _Captured(Stub(), [leaf.clone() for leaf in leaves], leaves[0])  # type: ignore[arg-type]

    monkeypatch.setattr(GraphedStep, "_capture", capture)
    for key in (frozenset(), frozenset(), frozenset({"a"}), frozenset(), frozenset({"a"})):
        sites.key = key
        step(torch.ones(2))
    assert made == [frozenset(), frozenset({"a"})]
    assert sites.seen == [True, False]  # second kernels once, then the first ones, and never again


def test_replays_count_in_the_receipt_and_warm_ups_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot called twice per step, three replays: six calls, whatever warming up and capturing called."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.op = slot(ops.gated_residual, "test")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.op(x, self.op(x, x, x), x)

    model = Model()
    step = GraphedStep(model, "cuda:0")
    monkeypatch.setattr("turbort_cuda.graph._capturable", lambda leaves, device: True)

    def captured(self: GraphedStep, leaves: list[Any], form: Any, shape: Any) -> _Captured:
        self._warm_up(leaves, {}, shape)
        model(*leaves)
        return _Captured(Stub(), [leaf.clone() for leaf in leaves], leaves[0], [(model.op, 2)])  # type: ignore[arg-type]

    monkeypatch.setattr(GraphedStep, "_captured", captured)
    for _ in range(3):
        step(torch.ones(1, 2, 4))
    assert model.op.calls == 6


def test_second_kernels_that_warm_up_are_not_in_the_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switching moves a site's calls aside; each new shape warms up both kernels, and neither counts, nor does a call twice."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.op = slot(ops.gated_residual, "test")
            self.op.bind(ops.gated_residual.reference, provider="first", precision="w8a8")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.op(x, x, x)

    model = Model()

    class Board(Sites):
        @contextmanager
        def everything_promoted(self) -> Iterator[None]:
            model.op.switch(model.op.fn, provider="second", precision="bf16")
            yield
            model.op.switch(model.op.fn, provider="first", precision="w8a8")

    def captured(self: GraphedStep, leaves: list[Any], form: Any, shape: Any) -> _Captured:
        self._warm_up(leaves, {}, shape)
        model(*leaves)
        return _Captured(Stub(), [leaf.clone() for leaf in leaves], leaves[0], [(model.op, 1)])  # type: ignore[arg-type]

    monkeypatch.setattr("turbort_cuda.graph._capturable", lambda leaves, device: True)
    monkeypatch.setattr(GraphedStep, "_captured", captured)
    step = GraphedStep(model, "cuda:0", Board())
    for tokens in (2, 2, 3):
        step(torch.ones(1, tokens, 4))
    assert model.op.counts() == {("first", "w8a8"): 3}


def test_a_capture_forbids_nothing_to_other_threads_and_a_second_one_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In CUDA's global mode a weight that a thread pins while a step is captured fails the thread and the capture."""
    emptied: list[int] = []

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

    sites = Sites()
    monkeypatch.setattr(Stub, "begun", [])
    monkeypatch.setattr("turbort_cuda.graph._capturable", lambda leaves, device: True)
    stubs = {
        "Stream": lambda device: Stream(),
        "current_stream": lambda device: Stream(),
        "stream": nullcontext,
        "CUDAGraph": Stub,
    }
    stubs |= {"graph_pool_handle": object, "synchronize": lambda device: None, "empty_cache": lambda: emptied.append(1)}
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    step = GraphedStep(lambda x: x + 1, "cuda:0", sites)
    assert step(torch.ones(2)).tolist() == [2, 2]
    sites.key = frozenset({"a"})
    assert step(torch.ones(2)).tolist() == [2, 2]
    assert [options["capture_error_mode"] for options in Stub.begun] == ["thread_local"] * 2
    assert Stub.begun[0]["pool"] is Stub.begun[1]["pool"]
    assert len(emptied) == 1  # only warming up leaves memory behind; a second set of kernels must not wait for the device


def test_a_pool_is_left_for_a_capture_and_entered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextmanager
    def use(pool: Any, device: torch.device) -> Iterator[None]:
        seen.append("enter")
        yield
        seen.append("leave")

    monkeypatch.setattr(torch.cuda, "MemPool", object)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", use)
    with SessionPool("cuda:0"):
        with SessionPool.outside(torch.device("cuda:0")):
            seen.append("capture")
        with SessionPool.outside(torch.device("cuda:1")):
            seen.append("other device")
    assert seen == ["enter", "leave", "capture", "enter", "other device", "leave"]
    with SessionPool.outside(torch.device("cuda:0")):
        pass
    assert len(seen) == 6
