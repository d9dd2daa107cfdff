"""Ahead-of-time compilation of a model's step: StableHLO, the serialised executable, and the compiler's figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from turbort.io import atomic_text
from turbort_tpu import probe
from turbort_tpu.aot import topology

if TYPE_CHECKING:
    from pathlib import Path

    from turbort.models.config import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile
    from turbort.registry import Registry


def compile_step(spec: ModelSpec, profile: Profile, registry: Registry, out: Path, plan: Plan) -> dict[str, Any]:
    """Write `step.stablehlo`, `step.executable`, `programs.json` and `step.json` into `out`; returns what is in the last.

    The executable is for one device of the plan's generation, or for XLA:CPU where that stands in for a TPU
    (`TURBORT_TPU_EMULATE`). Raises UnavailableError without jax and libtpu.
    """
    emulated = probe.emulated()
    if emulated is None:
        topology.require()
        topology.prepare()
    from turbort_tpu.aot.inspect import dots, vmem
    from turbort_tpu.aot.step import staged
    from turbort_tpu.jax_executor import shelf
    from turbort_tpu.jax_executor.signature import Signature
    from turbort_tpu.kernels.common import pallas

    target = str(plan.header["arch"])
    place = topology.Host() if emulated else topology.On(target)
    step = staged(spec, profile, registry, plan, place)
    with pallas("auto" if emulated else "compile"):
        signature = Signature.of(step, place.device)
        found = step.traced()
        program = found.lower()
        compiled = program.compile()
    peak = compiled.memory_analysis().peak_memory_in_bytes
    facts: dict[str, Any] = {
        "model": spec.name,
        "profile": profile.name,
        "target": target,
        "device": signature.device,
        "plan": plan.digest,
        "blocks": spec.dit.layers,
        "size": plan.header["size"],
        "frames": plan.header["frames"],
        "peak_hbm_bytes": peak,
        "peak_vmem_bytes": vmem(compiled),
        "products_of_8_bit_codes": dots(found.jaxpr).kept,
        "versions": dict(signature.versions),
        "measured_by": "the compiler; nothing ran on a TPU",
    }
    shelf.write(out, compiled, signature, peak)
    atomic_text(out / "step.stablehlo", program.as_text())
    atomic_text(out / "step.json", json.dumps(facts, indent=1) + "\n")
    return facts
