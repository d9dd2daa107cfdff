"""The reference backend: every op's reference function on any torch device, and faster CPU kernels where they win."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from turbort.backend import Backend, Device, MemoryStats
from turbort.hookspecs import hookimpl
from turbort.kernel import Kernel
from turbort.precision import ATTENTION, FLOATS, LINEAR

_EMITTED = ("int8-token", "fp8-token", "int8-block128")
_PRECISIONS = {"linear": (*FLOATS, *LINEAR), "attention": (*FLOATS, *ATTENTION), "sla_attention": (*FLOATS, *ATTENTION)}
_EMITS = dict.fromkeys(
    ("norm_modulate", "layer_norm", "rms_norm", "gated_residual_norm_modulate", "gelu_quant", "quantize"), _EMITTED
) | {"quantize_time": ("int8-token", "fp8-token")}
_OPS = (
    "linear", "attention", "sla_attention", "norm_modulate", "layer_norm", "rms_norm", "gated_residual",
    "gated_residual_norm_modulate", "qk_norm_rope", "gelu_quant", "quantize", "quantize_time", "patchify", "unpatchify",
    "causal_conv3d", "vae_norm_silu", "vae_upsample",
)  # fmt: skip


def reference_kernels(name: str, *, priority: int = 0) -> Iterator[Kernel]:
    """One kernel per op, at every precision of that op: the reference function itself."""
    for op in _OPS:
        precisions = tuple(p for p in _PRECISIONS.get(op, FLOATS) if p != "w4a8")
        yield Kernel(op, name, f"turbort.ops:{op}", precisions, emits=_EMITS.get(op, ()), priority=priority)
    # An int4 weight cannot say whether activations have 8 or 16 bits, so w4a8 has a function of its own.
    yield Kernel("linear", f"{name}-w4a8", "turbort.ops.linear:linear_w4a8", ("w4a8",), priority=priority)


class Reference(Backend):
    """Correct everywhere: the specification of every op, executed by torch."""

    name = "reference"

    def probe(self) -> list[Device]:
        return [
            Device(
                backend=self.name,
                name=_cpu_name(),
                torch_name="cpu",
                arch=platform.machine() or "cpu",
                memory=_total_memory(),
                dtypes=frozenset({"float32", "bfloat16", "float16", "int8", "float8_e4m3fn"}),
                features=_cpu_features(),
                details={"cores": str(_cores())},
            )
        ]

    def kernels(self) -> Iterable[Kernel]:
        from turbort.cpu_kernels import cpu_kernels

        yield from cpu_kernels()
        yield from reference_kernels("reference", priority=-100)

    def memory(self, device: Device) -> MemoryStats:
        used, peak = _resident_memory()
        return MemoryStats(used=used, peak=peak, total=device.memory)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "CPU"


def _cpu_features() -> frozenset[str]:
    """Instruction sets that the CPU kernels ask for."""
    flags = set(_cpuinfo("flags").split() + _cpuinfo("Features").split())
    names = {
        "avx512_vnni": "vnni",
        "avx_vnni": "vnni",
        "avx512_bf16": "bf16",
        "amx_bf16": "bf16",
        "amx_int8": "vnni",
        "avx512f": "avx512",
        "avx2": "avx2",
        "bf16": "bf16",
    }
    return frozenset({"cpu"} | {tag for flag, tag in names.items() if flag in flags})


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _resident_memory() -> tuple[int | None, int | None]:
    """Resident bytes now and at most, from /proc where there is one."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, None
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    return tuple(int(fields[key].split()[0]) * 1024 if key in fields else None for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """The reference backend."""
    return (Reference(),)
