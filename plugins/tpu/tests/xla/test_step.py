"""A whole transformer through the `torch_xla` executor against the reference backend."""

import pytest
import torch
from tests.step_models import bound, error, inputs, tiny, weights
from turbort_tpu.backend import Tpu
from turbort_tpu.bridge.executor import active
from turbort_tpu.torch_xla_executor import TorchXlaExecutor, compiles, fallbacks

from turbort.errors import TurbortError
from turbort.models.config import Sla
from turbort.registry import Registry


@pytest.fixture(scope="module")
def registry():
    return Registry()


@pytest.mark.parametrize("sla", [None, Sla(0.4)], ids=["dense", "sla"])
def test_same_velocity_as_the_reference_backend(registry, sla):
    spec = tiny(sla)
    state = weights(spec)
    x, t, text = inputs(spec)
    with torch.inference_mode():
        reference, _ = bound(spec, "reference", registry, state)
        want = reference(x, t, reference.encode_text(text))
        before = fallbacks()
        model, plan = bound(spec, "tpu", registry, state)
        step = registry.backend("tpu").compile_step(model, registry.devices("tpu")[0])
        context = model.encode_text(text.to("xla"))
        got = step(x.to("xla"), t.to("xla"), context).cpu()
        programs = compiles()
        again = step(x.to("xla"), torch.full((2,), 100.0, device="xla"), context).cpu()
    assert not plan.fallbacks
    assert "w8a8" in {choice.precision for choice in plan if choice.op == "linear"}
    assert error(got, want) < 1e-3
    assert error(again, want) > 1e-3
    assert compiles() <= programs + 1  # the new times are made by a program of their own; the step is not compiled again
    assert fallbacks() == before


def test_a_step_that_leaves_the_device_is_an_error():
    step = active().compile_step(lambda a, b: torch._int_mm(a, b), lambda size: None)
    codes = torch.ones(32, 32, dtype=torch.int8, device="xla")
    with pytest.raises((TurbortError, RuntimeError)):
        step(codes, codes)


def test_every_new_length_compiles_once():
    step = active().compile_step(lambda x: (x * 2 + 1).sum(-1), lambda size: None)
    inputs = [torch.ones(rows, 8, device="xla") for rows in (3, 5, 3)]
    counts = []
    for x in inputs:
        before = compiles()
        step(x)
        counts.append(compiles() - before)
    assert counts[:2] != [0, 0]
    assert counts[2] == 0


def test_memory_is_unknown_here(registry):
    device = registry.devices("tpu")[0]
    assert isinstance(active(), TorchXlaExecutor)
    assert (device.torch_name, device.details["executor"]) == ("xla", "torch_xla")
    assert Tpu().memory(device).used is None
    assert active().memory(None).used is None
