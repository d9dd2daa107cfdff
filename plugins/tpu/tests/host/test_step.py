"""A whole transformer through the `jax` executor against the reference backend: same weights, same plan precisions."""

import pytest
import torch
from tests.step_models import bound, error, inputs, tiny, weights
from turbort_tpu.jax_executor.program import trace
from turbort_tpu.jax_executor.step import CompiledStep

from turbort.models.config import Sla
from turbort.profile import load_profile
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
        model, plan = bound(spec, "tpu", registry, state)
        step = registry.backend("tpu").compile_step(model, registry.devices("tpu")[0])
        context = model.encode_text(text)
        got = step(x, t, context)
        again = step(x, torch.full((2,), 100.0), context)
    assert not plan.fallbacks
    assert {choice.precision for choice in plan if choice.op == "linear"} >= {"w8a8", "bf16", "fp32"}
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    # Both round at the same places; what is left is the order of float sums, which INT8 rounding can amplify.
    assert error(got, want) < 1e-3
    assert error(again, want) > 1e-3
    assert step.compiled == 1
    assert all(slot.calls == 2 for slot in model.blocks[0].self_attn.q.__dict__.values() if hasattr(slot, "calls"))


def test_scales_shared_along_time_come_from_the_reference_inside_the_program(registry):
    spec, profile = tiny(None), load_profile("tpu-v5e")
    precision = profile.precision.model_copy(update={"activation_scales": "time"})
    profile = profile.model_copy(update={"precision": precision})
    state = weights(spec)
    x, t, text = inputs(spec)
    with torch.inference_mode():
        reference, _ = bound(spec, "reference", registry, state, profile=profile)
        want = reference(x, t, reference.encode_text(text))
        plain, _ = bound(spec, "reference", registry, state)
        other = plain(x, t, plain.encode_text(text))
        model, plan = bound(spec, "tpu", registry, state, profile=profile)
        step, context = registry.backend("tpu").compile_step(model, registry.devices("tpu")[0]), model.encode_text(text)
        got = step(x, t, context)
        step(x, t, context)
    shared = [choice for choice in plan if choice.time_scales]
    assert {choice.time_scales for choice in shared} == {"reference/reference"}
    assert shared[0].passed_over["tpu@time"] == "tpu has no kernel that shares scales along time"
    assert error(got, want) < 1e-3
    assert error(other, want) > error(got, want)
    assert {slot.calls for slot in model.tokens.quantisers.values()} == {2}


def test_every_new_shape_compiles_once():
    step = CompiledStep(lambda x, factor: x * factor + 1)
    for rows in (3, 5, 3):
        x = torch.arange(rows * 2.0).view(rows, 2)
        torch.testing.assert_close(step(x, 2.0), x * 2 + 1)
    assert step.compiled == 2


def test_the_trace_leaves_nothing_fake_behind(registry):
    spec = tiny(None)
    model, _ = bound(spec, "tpu", registry, weights(spec))
    x, t, text = inputs(spec)
    with torch.inference_mode():
        program, *_ = trace(model, (x, t, model.encode_text(text)), {})
    assert model._rope == {}
    assert len(program.constants) == 2  # the rotation tables
    assert len(program.sites) == sum(program.calls.values())
