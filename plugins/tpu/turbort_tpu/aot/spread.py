"""Attention over the four chips of one host, compiled for chips that are not here."""

from __future__ import annotations

from typing import Any

from turbort_tpu.aot import topology
from turbort_tpu.aot.cases import BATCH, HEADS, LENGTH
from turbort_tpu.aot.inspect import dots, vmem

CHIPS = 4


def compile_spread(target: str, *, int8: bool = True) -> dict[str, Any]:
    """Compile `spread_attention` at the shapes of the 1.3B model; raises RuntimeError when no all-to-all is left in it."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding

    from turbort_tpu.kernels.common import pallas
    from turbort_tpu.kernels.ulysses import AXIS, TOKENS, spread_attention

    mesh = Mesh(np.array(topology.devices(target)[:CHIPS]), (AXIS,))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS, 128), jnp.bfloat16, sharding=NamedSharding(mesh, TOKENS))
    with pallas("compile"):
        traced = jax.jit(lambda q, k, v: spread_attention(mesh, q, k, v, int8=int8)).trace(tokens, tokens, tokens)
        compiled = traced.lower().compile()
    if "all-to-all" not in compiled.as_text():
        raise RuntimeError("the compiled program exchanges nothing between chips")
    found, memory = dots(traced.jaxpr), compiled.memory_analysis()
    return {"peak_hbm": memory.peak_memory_in_bytes, "peak_vmem": vmem(compiled), "dots": found.kept, "wrapped": found.wrapped}
