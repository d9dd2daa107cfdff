"""A small transformer with random weights, bound to a backend, for tests of whole steps under any executor."""

from dataclasses import replace

import torch

from turbort.bind import Binder
from turbort.models.sites import build_dit
from turbort.models.spec import MODELS
from turbort.models.wan_dit import WanDit
from turbort.planner import Target, make_plan
from turbort.profile import load_profile

SIZE, FRAMES = (64, 48), 9


def tiny(sla):
    spec = MODELS["tiny"]
    return replace(spec, dit=replace(spec.dit, layers=2, sla=sla))


def weights(spec):
    torch.manual_seed(0)
    model = WanDit(spec.dit, spec.dit.sla)
    torch.nn.init.normal_(model.head.head.weight, std=0.05)
    return {name: value.detach() * 1.0 for name, value in model.named_parameters()}


def bound(spec, backend, registry, state, device=None, profile=None):
    """The model under a profile (the TPU plugin's for a v5e) on a backend's device, and its plan."""
    chosen = profile or load_profile("tpu-v5e")
    target = Target(backend, device or registry.devices(backend)[0])
    plan = make_plan(spec, chosen, registry, size=SIZE, frames=FRAMES, batch=2, target=target)
    model = build_dit(spec, chosen.attention)
    binder = Binder(model, plan, "dit", registry, device=torch.device(target.device.torch_name), dtype=torch.bfloat16)
    for name in binder.expected():
        binder.place(name, state[name])
    return model, plan


def inputs(spec, batch=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *spec.latent_shape(*SIZE, FRAMES), generator=generator).bfloat16()
    text = torch.randn(batch, spec.dit.text_len, spec.dit.text_dim, generator=generator).bfloat16()
    return x, torch.full((batch,), 500.0), text


def error(got, want):
    """Normalised mean square error."""
    return float((got.float() - want.float()).square().sum() / want.float().square().sum())
