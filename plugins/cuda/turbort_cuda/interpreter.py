"""Corrections to Triton's interpreter, so that it computes what the hardware does.

Triton 3.6 to 3.8 truncate in the interpreter when a float32 becomes bfloat16 or e4m3, where GPUs round to nearest even, and
multiply the bit patterns of bfloat16 matrices as integers. Casts and products go through torch instead, which is also faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn}
_BITS = {1: (np.int8, np.uint8, torch.int8), 2: (np.int16, np.uint16, torch.int16), 4: (np.int32, np.uint32, torch.int32)}
_done = False


def correct() -> None:
    """Install the corrections, once per process."""
    global _done
    if _done:
        return
    _done = True
    from triton.runtime import interpreter

    original_convert: Any = interpreter._convert_float
    builder: Any = interpreter.InterpreterBuilder
    original_cast: Any = builder.cast_impl
    original_dot: Any = builder.create_dot

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        kinds = _TORCH.get(str(source)), _TORCH.get(str(target))
        if kinds[0] is None or kinds[1] is None:
            return original_convert(values, source, target, rounding)
        return cast_bits(values, kinds[0], kinds[1])

    def cast(self: Any, source: Any, target: Any) -> Any:
        if str(target.scalar) == "bf16" and not source.dtype.scalar.is_floating():
            data = cast_bits(source.data.astype(np.float32), torch.float32, torch.bfloat16)
            return interpreter.TensorHandle(data, target.scalar)
        return original_cast(self, source, target)

    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if str(a.dtype.scalar) != "bf16":
            return original_dot(self, a, b, d, precision, imprecise)
        left, right = (cast_bits(part.data, torch.bfloat16, torch.float32).view(np.float32) for part in (a, b))
        return interpreter.TensorHandle(np.matmul(left, right) + d.data, d.dtype.scalar)

    interpreter._convert_float = convert
    builder.cast_impl, builder.create_dot = cast, dot


def cast_bits(values: Any, source: torch.dtype, target: torch.dtype) -> Any:
    """Bit patterns of `source` in a numpy array to bit patterns of `target` (unsigned), rounding to nearest even."""
    signed = np.ascontiguousarray(values).view(_BITS[source.itemsize][0])
    if not signed.flags.writeable:
        signed = signed.copy()
    result = torch.from_numpy(signed).view(source).to(target)
    _, unsigned, bits = _BITS[target.itemsize]
    return result.view(bits).numpy().view(unsigned).reshape(np.shape(values))
