"""`python -m turbort_tpu.aot.compile`: StableHLO and the serialised executable of a model's trunk, with their figures."""

from __future__ import annotations

import argparse
import json
import pickle
from importlib import metadata
from pathlib import Path

from turbort_tpu.aot import topology


def compile_model(model: str, profile: str, out: Path, layers: int | None = None) -> dict[str, object]:
    """Write `trunk.stablehlo`, `trunk.executable` and `trunk.json` into `out`; returns what is in the last.

    The executable is what `jax.experimental.serialize_executable` makes: it runs on a device of the same generation
    under the same jaxlib and libtpu.
    """
    topology.require()
    topology.prepare()
    from jax.experimental import serialize_executable

    from turbort.models.spec import get_model
    from turbort.profile import load_profile
    from turbort.registry import Registry
    from turbort_tpu.aot.inspect import dots, vmem
    from turbort_tpu.aot.trunk import lowered, traced

    spec, chosen = get_model(model), load_profile(profile)
    target = chosen.target.arch[0]
    trunk = traced(spec, chosen, Registry(), size=(spec.defaults.width, spec.defaults.height), frames=spec.defaults.frames)
    jaxpr, program = lowered(trunk, layers or trunk.layers, topology.On(target))
    compiled = program.compile()
    found = dots(jaxpr)
    facts: dict[str, object] = {
        "model": model,
        "profile": chosen.name,
        "target": target,
        "plan": trunk.plan,
        "layers": layers or trunk.layers,
        "peak_hbm_bytes": compiled.memory_analysis().peak_memory_in_bytes,
        "peak_vmem_bytes": vmem(compiled),
        "products_of_8_bit_codes_per_block": found.kept,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "torch")},
        "measured_on": "the compiler; nothing ran on a TPU",
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "trunk.stablehlo").write_text(program.as_text(), encoding="utf-8")
    (out / "trunk.executable").write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
    (out / "trunk.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def main() -> None:
    """Compile from the command line and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wan2.1-t2v-1.3b")
    parser.add_argument("--profile", default="tpu-v5e")
    parser.add_argument("--layers", type=int, help="compile only so many blocks")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/tpu-trunk"))
    given = parser.parse_args()
    print(json.dumps(compile_model(given.model, given.profile, given.out, given.layers), indent=1))


if __name__ == "__main__":
    main()
