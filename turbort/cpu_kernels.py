"""The faster CPU kernels of the reference backend, as rows for the planner. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from turbort.backend import Device
from turbort.kernel import Call, Kernel, Rejects, TensorSpec

CPU = frozenset({"cpu"})


def cpu_kernels() -> Iterable[Kernel]:
    """Kernels on oneDNN that beat the plain references on CPUs with the instructions they need."""
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
    # oneDNN convolves bfloat16 on CPUs with AVX-512 only.
    for name, precision, dtype, needs in (
        ("channels-last", "fp32", "float32", "avx2"),
        ("channels-last-bf16", "bf16", "bfloat16", "avx512"),
    ):
        for op in ("causal_conv3d", "vae_upsample", "vae_norm_silu"):
            yield Kernel(
                op,
                name,
                f"turbort.ops.cpu_vae:{op}",
                (precision,),
                rejects=_pixels(dtype),
                requires=CPU | {needs},
                priority=20,
                layout="channels_last",
            )


def _pixels(dtype: str) -> Rejects:
    """Refuse what is not video-shaped, because the innermost layout is defined for 5 axes, or of another dtype."""

    def rejects(call: Call, device: Device) -> str | None:
        x = call["x"]
        if isinstance(x, TensorSpec) and (len(x.shape) != 5 or x.dtype != dtype):
            return f"takes {dtype} [B, C, T, H, W], x is {x.dtype} with {len(x.shape)} axes"
        return None

    return rejects


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
