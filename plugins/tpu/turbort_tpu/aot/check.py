"""`turbort check tpu --targets ...`: every kernel's numerics on XLA:CPU, then what the compiler says for TPUs that are not here.

The compiler must accept every kernel at real shapes, and refuse the programs that are there to be refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from turbort.errors import unknown
from turbort_tpu.aot import topology
from turbort_tpu.aot.cases import Case, cases, controls
from turbort_tpu.aot.spread import compile_batch, compile_spread
from turbort_tpu.generations import GENERATIONS, Generation

NUMERICS = "numerics"
PROCESSES = 2
BLOCK_MODEL = "wan2.1-t2v-1.3b"
BLOCK, BLOCK_TARGETS = f"one block of {BLOCK_MODEL}", ("v5e", "v6e")
SPREAD, SPREAD_TARGETS = "attention int8 on 4 chips", ("v5e",)
BATCH = f"one block of {BLOCK_MODEL}, batch over 4 chips"
BLOCK_DOTS = 8 + 4
"""Eight linears, and the four unrolled products of the sparse branch."""


def check_targets(targets: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows with `target`, `case`, `ok`, `detail`, `seconds`, `peak_hbm`, `peak_vmem` (bytes) and `dots`.

    Two processes share the work, since the compiler keeps one core busy. Raises InputError for an unknown target,
    UnavailableError without jax and libtpu.
    """
    for target in targets:
        if target not in GENERATIONS:
            raise unknown("TPU generation", target, GENERATIONS)
    topology.require()
    topology.prepare()
    # The longest parts first, so that none is left alone at the end.
    parts = [NUMERICS, *sorted(targets, key=lambda name: (name not in BLOCK_TARGETS, targets.index(name)))]
    with ProcessPoolExecutor(min(PROCESSES, len(parts)), mp_context=get_context("spawn")) as pool:
        for rows in pool.map(rows_of, parts):
            yield from rows


def rows_of(part: str) -> list[Mapping[str, Any]]:
    """The rows of one generation, or those that need no compiler (`NUMERICS`)."""
    topology.prepare()
    if part != NUMERICS:
        return list(target_rows(GENERATIONS[part]))
    from turbort_tpu.aot.numerics import numeric_rows

    return [*numeric_rows(), _wrapping()]


def target_rows(generation: Generation, only: str = "") -> Iterator[Mapping[str, Any]]:
    """The rows of one generation; `only` is part of the names wanted."""
    place = topology.On(generation.name)
    for case in (*cases(), *controls()):
        if case.applies(generation) and only in case.name:
            yield _row(case.name, generation, partial(compile_case, case, place), case.dots, case.refusal)
    if generation.name in BLOCK_TARGETS and only in BLOCK:
        yield _row(BLOCK, generation, partial(block, generation.name), BLOCK_DOTS)
    if generation.name in SPREAD_TARGETS and only in SPREAD:
        yield _row(SPREAD, generation, partial(compile_spread, generation.name), 1)
    if generation.name in SPREAD_TARGETS and only in BATCH:
        yield _row(BATCH, generation, partial(compile_batch, generation.name), BLOCK_DOTS)


def block(target: str) -> Mapping[str, Any]:
    """The step of the 1.3B model cut down to one block, through the executor."""
    from turbort_tpu.aot.step import one_block

    return one_block(BLOCK_MODEL, f"tpu-{target}", topology.On(target))


def _row(
    name: str, generation: Generation, work: Callable[[], Mapping[str, Any]], least: int, refusal: tuple[str, ...] | None = None
) -> Mapping[str, Any]:
    """The result of one program: what it measured, and whether that is right."""
    started = time.perf_counter()
    row: dict[str, Any] = {"target": generation.name, "case": name, "peak_hbm": None, "peak_vmem": None, "dots": None}
    try:
        row |= work()
    except Exception as error:  # noqa: BLE001 - the compiler's refusals have many types
        text = re.sub(r"\s+", " ", str(error))
        expected = refusal is not None and any(word in text for word in refusal)
        row |= {"ok": expected, "detail": f"refused, as it must be: {_short(text)}" if expected else _short(text)}
    else:
        wrong = _fault(row, generation, least) if refusal is None else "compiled, and must be refused"
        row |= {"ok": wrong is None, "detail": wrong or "compiled"}
    return {**row, "seconds": round(time.perf_counter() - started, 2)}


def _fault(row: Mapping[str, Any], generation: Generation, least: int) -> str | None:
    if row["dots"] < least or row["wrapped"]:
        return f"{row['dots']} 8-bit products with wide sums and {row['wrapped']} without; {least} and 0 are right"
    if row["peak_hbm"] > generation.hbm:
        return f"peak {row['peak_hbm'] / 2**30:.2f} GiB is more than the {generation.hbm / 2**30:.2f} there are"
    return None


def compile_case(case: Case, place: topology.On) -> dict[str, Any]:
    """Compile one case for the device of `place` and measure the result; raises what the compiler raises."""
    import jax
    import jax.numpy as jnp

    from turbort_tpu.aot.inspect import dots, vmem
    from turbort_tpu.kernels.common import pallas

    arguments = [place(shape, jnp.dtype(dtype)) for shape, dtype in case.arguments]
    with pallas("compile"):
        traced = jax.jit(case.build()).trace(*arguments)
        compiled = traced.lower().compile()
    found = dots(traced.jaxpr)
    memory = compiled.memory_analysis()
    return {"peak_hbm": memory.peak_memory_in_bytes, "peak_vmem": vmem(compiled), "dots": found.kept, "wrapped": found.wrapped}


def _wrapping() -> Mapping[str, Any]:
    """The counter must see an int8 product whose sums wrap: what torch's `matmul` of int8 tensors turns into."""
    import jax
    import jax.numpy as jnp

    from turbort_tpu.aot.inspect import dots

    codes = jax.ShapeDtypeStruct((8, 8), jnp.int8)
    found = dots(jax.make_jaxpr(lambda a, b: a @ b)(codes, codes))
    good = (found.kept, found.wrapped) == (0, 1)
    return {
        "target": "any",
        "case": "wrapped int8 sums are seen",
        "ok": good,
        "detail": str(found),
        "seconds": 0.0,
        "peak_hbm": None,
        "peak_vmem": None,
        "dots": None,
    }


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[:most] + " ..."
