"""All blocks of a transformer as one program for a TPU that is not here: the block is traced once and scanned.

The way is the one a run takes: plan, bind, pack, trace with torch, interpret into JAX. Weights are zeros of the right
shape that never leave the host; only the compiler sees a TPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from turbort.bind import Binder
from turbort.models.dit_layers import CrossKV, Residual
from turbort.models.sites import build_dit
from turbort.models.spec import ModelSpec
from turbort.planner import DTYPES, find_target, make_plan
from turbort.profile import Profile
from turbort.registry import Registry
from turbort_tpu import fit
from turbort_tpu.aot.inspect import dots, vmem
from turbort_tpu.aot.topology import On
from turbort_tpu.bridge.convert import spec_of
from turbort_tpu.jax_executor.step import Program, trace
from turbort_tpu.kernels.common import pallas


@dataclass(frozen=True, eq=False)
class Trunk:
    """A traced block with the shapes it was traced at."""

    program: Program
    parameters: list[torch.Tensor]
    inputs: list[torch.Tensor]
    layers: int
    plan: str


def traced(spec: ModelSpec, profile: Profile, registry: Registry, *, size: tuple[int, int], frames: int, batch: int = 2) -> Trunk:
    """Trace the first block of `spec` as this profile runs it."""
    one = replace(spec, dit=replace(spec.dit, layers=1))
    target = find_target(profile, registry, absent=True)
    plan = make_plan(one, profile, registry, target=target, size=size, frames=frames, batch=batch)
    compute = getattr(torch, DTYPES[profile.precision.compute])
    model = build_dit(one, profile.attention)
    binder = Binder(model, plan, "dit", registry, device=torch.device("cpu"), dtype=compute)
    for name, shape in binder.expected().items():
        if name.startswith("blocks."):
            binder.place(name, torch.zeros(shape, dtype=compute))
    dit, length = spec.dit, fit.tokens(spec, size, frames)
    # Empty tensors: tracing reads shapes only, so their memory is never touched.
    x = torch.empty(batch, length, dit.dim, dtype=compute)
    time = torch.empty(batch, 1, 6, dit.dim)
    rope = torch.empty(length, dit.head_dim // 2), torch.empty(length, dit.head_dim // 2)
    text = CrossKV(*(torch.empty(batch, dit.text_len, dit.heads, dit.head_dim, dtype=compute) for _ in range(2)))
    with pallas("compile"):
        program, parameters, inputs = trace(model.blocks[0], (x, None, time, rope, text, Residual("linear")), {})
    return Trunk(program, list(parameters.values()), inputs, spec.dit.layers, plan.digest)


def lowered(trunk: Trunk, layers: int, place: On) -> tuple[Any, Any]:
    """The jaxpr and the lowered program of `layers` blocks in a row; every layer has weights of its own."""
    import jax

    def stacked(leaf: Any) -> Any:
        return place((layers, *leaf.shape), leaf.dtype)

    weights = jax.tree.map(stacked, trunk.program.weights)
    parameters = [stacked(spec_of(tensor)) for tensor in trunk.parameters]
    constants = {name: place.tree(spec_of(tensor)) for name, tensor in trunk.program.constants.items()}
    first, *rest = [place.tree(spec_of(tensor)) for tensor in trunk.inputs]

    def run(x: Any, weights: Any, parameters: Any, constants: Any, rest: Any) -> Any:
        def block(h: Any, held: Any) -> tuple[Any, None]:
            return trunk.program(held[0], constants, held[1], [h, *rest])[0], None

        return jax.lax.scan(block, x, (weights, parameters))[0]

    with pallas("compile"):
        found = jax.jit(run, donate_argnums=0).trace(first, weights, parameters, constants, rest)
        return found.jaxpr, found.lower()


def measured(trunk: Trunk, layers: int, place: On) -> dict[str, Any]:
    """Compile and report peak HBM and VMEM in bytes and the 8-bit products of one block."""
    jaxpr, program = lowered(trunk, layers, place)
    compiled = program.compile()
    found = dots(jaxpr)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    return {"peak_hbm": peak, "peak_vmem": vmem(compiled), "dots": found.kept, "wrapped": found.wrapped}


def block_row(model: str, profile: str, layers: int | None = None) -> Mapping[str, Any]:
    """`measured` for a built-in model under a shipped profile; `layers` None compiles all of them."""
    from turbort.models.spec import MODELS
    from turbort.profile import load_profile

    spec, chosen, registry = MODELS[model], load_profile(profile), Registry()
    size = spec.defaults.width, spec.defaults.height
    trunk = traced(spec, chosen, registry, size=size, frames=spec.defaults.frames)
    return measured(trunk, layers or trunk.layers, On(chosen.target.arch[0]))
