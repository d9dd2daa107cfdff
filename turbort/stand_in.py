"""Which precisions may stand in for one that no kernel of a device computes."""

from __future__ import annotations

from collections.abc import Mapping

from turbort.precision import PRECISIONS

# What may stand in for a precision that no kernel of the device computes: always more bits, never fewer.
_STEPS_UP: Mapping[str, tuple[str, ...]] = {
    "bsq4": ("w4a8", "w8a8"),
    "bsq8": ("w8a8",),
    "w4a16": (),
    "w4a8": ("w8a8",),
    "w8a8-block128": (),
    "w8a8": (),
    "fp8": ("w8a8",),
    "int8-fp8": ("int8",),
    "int8": (),
    "fp16": ("fp32",),
    "bf16": ("fp32",),
    "fp32": (),
}


def steps_up(precision: str, compute: str) -> tuple[str, ...]:
    """Precisions that may stand in for `precision`, nearest first; quantised ones end at the profile's compute precision."""
    if precision not in PRECISIONS:
        return ()
    last = () if PRECISIONS[precision].kind == "float" else (compute,)
    return tuple(name for name in (*_STEPS_UP.get(precision, ()), *last) if name != precision)
