"""Four chips of one host, compiled for chips that are not here: attention by heads, and a block's batch by samples."""

from __future__ import annotations

from typing import Any

from turbort_tpu.aot import topology
from turbort_tpu.aot.cases import BATCH, HEADS, LENGTH
from turbort_tpu.aot.inspect import dots, vmem

CHIPS = 4
FRAMES = 13
"""Frames of the clip for the block: long enough for four chosen key blocks, short enough to compile in seconds."""


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


def compile_batch(target: str) -> dict[str, Any]:
    """Compile the step of the 1.3B model, cut down to one block, for four samples, one a chip, as the executor spreads it.

    Raises RuntimeError when the chips exchange anything.
    """
    import jax
    import torch
    from jax.sharding import NamedSharding

    from turbort_tpu.aot.step import small, traced
    from turbort_tpu.bridge.convert import spec_of
    from turbort_tpu.jax_executor.program import Staged
    from turbort_tpu.jax_executor.spread import WHOLE, Spread
    from turbort_tpu.kernels.common import pallas

    program, parameters, share = traced(*small("wan2.1-t2v-1.3b", f"tpu-{target}", layers=1, frames=FRAMES, batch=1))
    spread = Spread.over(topology.devices(target)[:CHIPS], CHIPS)
    whole = [torch.empty(CHIPS * len(x), *x.shape[1:], dtype=x.dtype, device="meta") for x in share]

    def placed(leaf: Any, part: Any = WHOLE) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(spread.mesh, part))

    constants = {name: spec_of(tensor) for name, tensor in program.constants.items()}
    held = jax.tree.map(placed, (program.weights, constants, list(map(spec_of, parameters))))
    given = [placed(spec_of(tensor), spread.spec(tensor)) for tensor in whole]
    with pallas("compile"):
        found = Staged(program, held, given, spread).traced()
        compiled = found.lower().compile()
    if "all-" in compiled.as_text():
        raise RuntimeError("the chips exchange data, and samples need nothing of each other")
    products, memory = dots(found.jaxpr), compiled.memory_analysis()
    return {
        "peak_hbm": memory.peak_memory_in_bytes, "peak_vmem": vmem(compiled), "dots": products.kept, "wrapped": products.wrapped
    }  # fmt: skip
