"""What a program does with 8-bit codes, read from its jaxpr, and what the compiler reports of a compiled one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_CODES = {"int8", "float8_e4m3fn"}
_WIDE = {"int8": "int32", "float8_e4m3fn": "float32"}
_SCOPED = re.compile(r'used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"')


@dataclass(frozen=True)
class Dots:
    """Matrix products of two 8-bit operands.

    Attributes:
        kept: with sums in int32 (int8) or float32 (fp8), as the matrix unit gives them.
        wrapped: with sums in 8 bits, which wrap or round and are always wrong.
    """

    kept: int
    wrapped: int


def dots(jaxpr: Any) -> Dots:
    """Count 8-bit matrix products in a closed jaxpr, also inside Pallas kernels, loops and calls."""
    kept = wrapped = 0
    for equation in _equations(getattr(jaxpr, "jaxpr", jaxpr)):
        if equation.primitive.name != "dot_general":
            continue
        types = [str(operand.aval.dtype) for operand in equation.invars]
        if types[0] in _CODES and types[0] == types[1]:
            good = str(equation.outvars[0].aval.dtype) == _WIDE[types[0]]
            kept, wrapped = kept + good, wrapped + (not good)
    return Dots(kept, wrapped)


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def vmem(compiled: Any) -> int | None:
    """The largest scoped VMEM of any op in bytes; None where the compiler's text cannot be had."""
    try:
        sizes = [int(size) for size in _SCOPED.findall(compiled.as_text())]
    except Exception:  # noqa: BLE001 - some libtpu versions fail to print programs for tpu7x; the compile itself stands
        return None
    return max(sizes, default=0)
