"""A one-block transformer planned, bound, quantised and run through the Triton kernels, against the plain float model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` brings the interpreter")

import turbort_cuda

from turbort.bind import Binder, executed
from turbort.models.sites import build_dit
from turbort.models.spec import get_model
from turbort.planner import Target, make_plan
from turbort.profile import load_profile
from turbort.registry import Registry


@torch.no_grad()
def test_one_block_through_every_kernel() -> None:
    registry = Registry()
    registry = registry if "cuda" in registry.backends else Registry(extra=[turbort_cuda])
    profile, tiny = load_profile("h200"), get_model("tiny")
    spec = replace(tiny, dit=replace(tiny.dit, layers=1))
    target = Target("cuda", registry.devices("cuda")[0])
    plan = make_plan(spec, profile, registry, target=target, size=(128, 128), frames=5)
    draw = torch.Generator().manual_seed(0)
    planned, plain = build_dit(spec, profile.attention), build_dit(spec, profile.attention)
    binder = Binder(planned, plan, "dit", registry, device=torch.device("cpu"), dtype=torch.bfloat16)
    plain.to_empty(device="cpu")
    state = {}
    for name, shape in binder.expected().items():
        ones = name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight"))
        value = torch.ones(shape) if ones else torch.randn(shape, generator=draw) * (shape[-1] if len(shape) > 1 else 100) ** -0.5
        binder.place(name, value)
        state[name] = value
    plain.load_state_dict(state)
    x = torch.randn(1, 16, 2, 16, 16, generator=draw)
    text = torch.randn(1, spec.dit.text_len, spec.dit.text_dim, generator=draw)
    want = plain(x, torch.tensor([500.0]), text)
    got = planned(x.bfloat16(), torch.tensor([500.0]), text.bfloat16())
    assert float((got.float() - want).norm() / want.norm()) < 0.05
    providers = {row["provider"] for row in executed(planned, "dit")}
    assert {"cuda/triton-int8", "cuda/triton-int8-fp8", "cuda/triton"} <= providers
