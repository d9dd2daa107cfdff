"""The rows of the CPU kernels: what the planner reads; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable

from turbort.backend import Device
from turbort.kernel import Call, Kernel, Rejects, TensorSpec

CPU = frozenset({"cpu"})


def cpu_kernels() -> Iterable[Kernel]:
    """Kernels of `turbort.ops.cpu`, and the reference of w4a8.

    The int4 weight of w4a8 is that of w4a16, so its reference is a function of its own that quantises x.
    """
    yield Kernel(
        "linear",
        "onednn-int8",
        "turbort.ops.cpu:linear_int8",
        ("w8a8",),
        rejects=_matrix_weight,
        requires=CPU | {"vnni"},
        priority=20,
        pack="turbort.ops.cpu:pack_int8",
    )
    yield Kernel(
        "linear",
        "onednn-bf16",
        "turbort.ops.cpu:linear_float",
        ("bf16",),
        rejects=_floats("bfloat16"),
        requires=CPU | {"bf16"},
        priority=20,
        pack="turbort.ops.cpu:pack_float",
    )
    yield Kernel(
        "linear",
        "onednn-fp32",
        "turbort.ops.cpu:linear_float",
        ("fp32",),
        rejects=_floats("float32"),
        requires=CPU | {"avx512"},
        priority=20,
        pack="turbort.ops.cpu:pack_float",
    )
    yield Kernel("linear", "reference-w4a8", "turbort.ops.linear:linear_w4a8", ("w4a8",), priority=-90)


def _matrix_weight(call: Call, device: Device) -> str | None:
    weight = call["weight"]
    if isinstance(weight, TensorSpec) and len(weight.shape) != 2:
        return f"packs weights with 2 axes, not {len(weight.shape)}"
    return None


def _floats(dtype: str) -> Rejects:
    """Refuse a call whose x has another dtype than the packed weight: oneDNN converts neither."""

    def rejects(call: Call, device: Device) -> str | None:
        x = call["x"]
        if isinstance(x, TensorSpec) and x.dtype != dtype:
            return f"multiplies {dtype} by {dtype}, x is {x.dtype}"
        return _matrix_weight(call, device)

    return rejects
