"""A model's denoising step for a device that may not be here: the program of a run, without weights.

The way is the one a run takes: bind the plan, pack, trace with torch, interpret into JAX. Packed weights are shapes only, since
they are made from tensors on meta, so that a model of any size can be compiled on a small machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from turbort.bind import Binder
from turbort.first_call import first_call
from turbort.job import Job
from turbort.models.sites import build_dit
from turbort.planner import DTYPES, find_target, make_plan
from turbort_tpu.aot.inspect import dots, vmem
from turbort_tpu.bridge.convert import spec_of
from turbort_tpu.jax_executor.program import Program, Staged, trace
from turbort_tpu.jax_executor.site import tracing
from turbort_tpu.kernels.common import pallas

if TYPE_CHECKING:
    from turbort.models.spec import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile
    from turbort.registry import Registry
    from turbort_tpu.aot.topology import On


def traced(
    spec: ModelSpec, profile: Profile, registry: Registry, plan: Plan
) -> tuple[Program, list[torch.Tensor], list[torch.Tensor]]:
    """The step of a planned model, its own tensors that no kernel packs, and the tensors among its arguments.

    The tensors are uninitialised.
    """
    compute = getattr(torch, DTYPES[profile.precision.compute])
    model = build_dit(spec, profile.attention)
    meta = torch.device("meta")
    binder = Binder(model, plan, "dit", registry, device=meta, dtype=compute)
    for name, shape in binder.expected().items():
        binder.place(name, torch.empty(shape, dtype=compute, device=meta))
    model.to_empty(device="cpu")
    width, height = plan.header["size"]
    job = Job("", width=width, height=height, frames=plan.header["frames"]).resolved(spec)
    with tracing():
        args, kwargs = first_call(model, spec, profile, plan, job)
    program, parameters, inputs = trace(model, args, kwargs)
    return program, list(parameters.values()), inputs


def staged(spec: ModelSpec, profile: Profile, registry: Registry, plan: Plan, place: On) -> Staged:
    """The step with everything on the device of `place`."""
    program, parameters, inputs = traced(spec, profile, registry, plan)
    constants = {name: spec_of(tensor) for name, tensor in program.constants.items()}
    held = program.weights, constants, list(map(spec_of, parameters))
    return Staged(program, place.tree(held), place.tree(list(map(spec_of, inputs))))


def measured(step: Staged) -> dict[str, Any]:
    """Compile for a TPU and report peak HBM and VMEM in bytes, and the 8-bit products."""
    with pallas("compile"):
        found = step.traced()
        compiled = found.lower().compile()
    products, peak = dots(found.jaxpr), compiled.memory_analysis().peak_memory_in_bytes
    return {"peak_hbm": peak, "peak_vmem": vmem(compiled), "dots": products.kept, "wrapped": products.wrapped}


def small(
    model: str, profile: str, *, layers: int, frames: int | None = None, batch: int = 2
) -> tuple[ModelSpec, Profile, Registry, Plan]:
    """What `traced` takes, for the first blocks of a built-in model at its own size under a shipped profile."""
    from turbort.models.spec import MODELS
    from turbort.profile import load_profile
    from turbort.registry import Registry

    whole, chosen, registry = MODELS[model], load_profile(profile), Registry()
    spec = replace(whole, dit=replace(whole.dit, layers=layers))
    size, count = (spec.defaults.width, spec.defaults.height), frames or spec.defaults.frames
    target = find_target(chosen, registry, absent=True)
    return spec, chosen, registry, make_plan(spec, chosen, registry, target=target, size=size, frames=count, batch=batch)


def one_block(model: str, profile: str, place: On) -> Mapping[str, Any]:
    """`measured` for the step of a model that is cut down to its first block."""
    return measured(staged(*small(model, profile, layers=1), place))
