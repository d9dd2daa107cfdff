"""Timing a step with random weights, on a backend that traces nothing and on one that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from turbort import bench
from turbort.backend import Device
from turbort.models.spec import get_model
from turbort.op import slots
from turbort.planner import make_plan
from turbort.profile import load_profile
from turbort.reference import Reference
from turbort.registry import Registry


@pytest.fixture(scope="module")
def small() -> tuple[Any, ...]:
    tiny, registry, profile = get_model("tiny"), Registry(), load_profile("cpu")
    spec = replace(tiny, dit=replace(tiny.dit, layers=1))
    plan = make_plan(spec, profile, registry, size=(64, 64), frames=5)
    return spec, profile, plan, registry, registry.devices("reference")[0]


def test_a_device_that_traces_nothing_is_timed_site_by_site(small: tuple[Any, ...]) -> None:
    times = bench.step_times(*small)
    assert {"linear", "rms_norm", "patchify", "gelu_quant"} <= set(times.classes)
    assert all(seconds > 0 for seconds in times.classes.values())
    assert times.whole > 0
    assert times.quantising == 0  # the CPU's linears quantise inside


def test_what_a_device_traces_is_taken_as_it_is(small: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(self: Reference, device: Device, call: Callable[[], Any]) -> Mapping[str, float]:
        call()
        return {"gemm": 3.0, "quantisation": 1.0}

    monkeypatch.setattr(Reference, "op_times", traced)
    monkeypatch.setattr(bench, "_seconds", lambda backend, device, call: 5.0)
    times = bench.step_times(*small)
    assert (times.idle, times.quantising) == (1.0, 0.2)


def test_sites_run_their_own_kernels_again_after_being_timed(small: tuple[Any, ...]) -> None:
    spec, profile, plan, registry, device = small
    model = bench.random_model(spec, profile, plan, registry, device, torch.float32)
    before = {path: site.fn for path, site in slots(model).items()}
    backend, found = registry.backend("reference"), {}
    with pytest.raises(ZeroDivisionError), bench._timed_slots(backend, device, model, found):
        raise ZeroDivisionError
    assert {path: site.fn for path, site in slots(model).items()} == before
