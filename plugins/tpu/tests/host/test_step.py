"""A whole transformer through the `jax` executor against the reference backend: same weights, same plan precisions."""

from dataclasses import replace

import pytest
import torch
from turbort_tpu.jax_executor.step import CompiledStep, trace

from turbort.bind import Binder
from turbort.models.config import Sla
from turbort.models.sites import build_dit
from turbort.models.spec import MODELS
from turbort.models.wan_dit import WanDit
from turbort.planner import Target, make_plan
from turbort.profile import load_profile
from turbort.registry import Registry

SIZE, FRAMES = (64, 48), 9


@pytest.fixture(scope="module")
def registry():
    return Registry()


def tiny(sla):
    spec = MODELS["tiny"]
    return replace(spec, dit=replace(spec.dit, layers=2, sla=sla))


def weights(spec):
    torch.manual_seed(0)
    model = WanDit(spec.dit, spec.dit.sla)
    torch.nn.init.normal_(model.head.head.weight, std=0.05)
    return {name: value.detach() * 1.0 for name, value in model.named_parameters()}


def bound(spec, backend, registry, state):
    profile = load_profile("tpu-v5e")
    target = Target(backend, registry.devices(backend)[0])
    plan = make_plan(spec, profile, registry, size=SIZE, frames=FRAMES, batch=2, target=target)
    model = build_dit(spec, profile.attention)
    binder = Binder(model, plan, "dit", registry, device=torch.device("cpu"), dtype=torch.bfloat16)
    for name in binder.expected():
        binder.place(name, state[name])
    return model, plan


def inputs(spec, batch=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *spec.latent_shape(*SIZE, FRAMES), generator=generator).bfloat16()
    text = torch.randn(batch, spec.dit.text_len, spec.dit.text_dim, generator=generator).bfloat16()
    return x, torch.full((batch,), 500.0), text


def error(got, want):
    return float((got.float() - want.float()).square().sum() / want.float().square().sum())


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
