"""Ahead-of-time compilation of a model's blocks: StableHLO, the serialised executable, and the compiler's figures."""

from __future__ import annotations

import json
import pickle
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.io import atomic_text
from turbort.io.atomic import atomic_bytes
from turbort_tpu.aot import topology

if TYPE_CHECKING:
    from turbort.models.config import ModelSpec
    from turbort.profile import Profile
    from turbort.registry import Registry


def compile_trunk(
    spec: ModelSpec,
    profile: Profile,
    registry: Registry,
    out: Path,
    *,
    size: tuple[int, int],
    frames: int,
    layers: int | None = None,
) -> dict[str, Any]:
    """Write `trunk.stablehlo`, `trunk.executable` and `trunk.json` into `out`; returns what is in the last.

    The executable is what `jax.experimental.serialize_executable` makes, pickled: it loads on a device of the same generation
    under the same jaxlib and libtpu. `layers` None compiles all blocks. Raises UnavailableError without jax and libtpu.
    """
    topology.require()
    topology.prepare()
    from jax.experimental import serialize_executable

    from turbort_tpu.aot.inspect import dots, vmem
    from turbort_tpu.aot.trunk import lowered, traced

    target = profile.target.arch[0]
    trunk = traced(spec, profile, registry, size=size, frames=frames)
    count = layers or trunk.layers
    jaxpr, program = lowered(trunk, count, topology.On(target))
    compiled = program.compile()
    facts: dict[str, Any] = {
        "model": spec.name,
        "profile": profile.name,
        "target": target,
        "plan_of_one_block": trunk.plan,
        "blocks": count,
        "size": list(size),
        "frames": frames,
        "peak_hbm_bytes": compiled.memory_analysis().peak_memory_in_bytes,
        "peak_vmem_bytes": vmem(compiled),
        "products_of_8_bit_codes_per_block": dots(jaxpr).kept,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "torch")},
        "measured_by": "the compiler; nothing ran on a TPU",
    }
    out.mkdir(parents=True, exist_ok=True)
    atomic_text(out / "trunk.stablehlo", program.as_text())
    atomic_bytes(out / "trunk.executable", pickle.dumps(serialize_executable.serialize(compiled)))
    atomic_text(out / "trunk.json", json.dumps(facts, indent=1) + "\n")
    return facts
