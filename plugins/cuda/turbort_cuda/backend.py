"""The CUDA backend: devices, memory, pools and CUDA graphs. torch is imported when a method needs it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from turbort.backend import Backend, Device, MemoryStats, Switches, Unavailable
from turbort.kernel import Kernel
from turbort_cuda.arch import INTERPRETER, INTERPRETER_FEATURES, nearest
from turbort_cuda.nvml import card_details, driver_version
from turbort_cuda.table import kernel_table

FLOATS = frozenset({"float32", "bfloat16", "float16", "int8"})


class Cuda(Backend):
    """NVIDIA GPUs from compute capability 8.0 on.

    With `TRITON_INTERPRET=1` and no GPU it offers one stand-in device instead: Triton's interpreter on the CPU, so
    that `turbort check cuda` can judge what the kernels compute where there is nothing to run them on.
    """

    name = "cuda"

    def probe(self) -> list[Device] | Unavailable:
        if importlib.util.find_spec("torch") is None:
            return Unavailable("torch is not installed", "pip install torch")
        import torch

        if os.environ.get("TRITON_INTERPRET") == "1":
            return _interpreter()
        if torch.version.cuda is None:
            build = "ROCm" if torch.version.hip else "CPU"
            return Unavailable(
                f"torch {torch.__version__} is the {build} build",
                f"install torch's CUDA build: https://pytorch.org/get-started/locally/{_without()}",
            )
        if not torch.cuda.is_available():
            driver = driver_version()
            reason = f"driver {driver} gives torch no device" if driver else "no NVIDIA driver answers"
            return Unavailable(reason, f"run `nvidia-smi`; install or update the NVIDIA driver{_without()}")
        if importlib.util.find_spec("triton") is None:
            return Unavailable("triton is not installed", "pip install triton")
        devices = [_device(index) for index in range(torch.cuda.device_count())]
        able = [device for device in devices if device is not None]
        if not able:
            names = ", ".join(torch.cuda.get_device_name(index) for index in range(len(devices)))
            return Unavailable(f"{names}: compute capability below 8.0", "use a card from Ampere on, or the reference backend")
        return able

    def kernels(self) -> Iterable[Kernel]:
        return kernel_table()

    def synchronize(self, device: Device) -> None:
        import torch

        if device.arch != INTERPRETER:
            torch.cuda.synchronize(device.torch_name)

    def memory(self, device: Device) -> MemoryStats:
        """What torch's allocator holds: used now, and the peak since `reset_peak`."""
        if device.arch == INTERPRETER:
            return MemoryStats()
        import torch

        used = torch.cuda.memory_allocated(device.torch_name)
        return MemoryStats(used=used, peak=torch.cuda.max_memory_allocated(device.torch_name), total=device.memory)

    def reset_peak(self, device: Device) -> None:
        if device.arch != INTERPRETER:
            import torch

            torch.cuda.reset_peak_memory_stats(device.torch_name)

    def empty_cache(self, device: Device) -> None:
        if device.arch != INTERPRETER:
            import torch

            with torch.cuda.device(device.torch_name):
                torch.cuda.empty_cache()

    def pool(self, device: Device, strategy: str) -> AbstractContextManager[Any]:
        """With `strategy: pool`, a pool per session: closing it gives all its memory back. Otherwise torch's own."""
        if device.arch == INTERPRETER or strategy != "pool":
            return nullcontext()
        from turbort_cuda.pool import SessionPool

        return SessionPool(device.torch_name)

    def compile_step(self, step: Callable[..., Any], device: Device) -> Callable[..., Any]:
        """The whole step as one CUDA graph per shape; see `turbort_cuda.graph`."""
        if device.arch == INTERPRETER:
            return step
        from turbort_cuda.graph import GraphedStep

        return GraphedStep(step, device.torch_name)

    @property
    def switches_kernels(self) -> bool:
        """A graph is kept per set of promoted sites."""
        return True

    def compile_switched(self, step: Callable[..., Any], device: Device, switches: Switches) -> Callable[..., Any]:
        """As `compile_step`, with one graph per `switches.key`; see `turbort_cuda.graph`."""
        if device.arch == INTERPRETER:
            return step
        from turbort_cuda.graph import GraphedStep

        return GraphedStep(step, device.torch_name, switches)

    def explain(self, device: Device) -> Mapping[str, str]:
        return device.details


def _device(index: int) -> Device | None:
    """The card torch numbers `index`; None when it is too old."""
    import torch

    found = torch.cuda.get_device_properties(index)
    arch = nearest(10 * found.major + found.minor)
    if arch is None:
        return None
    dtypes = FLOATS | ({"float8_e4m3fn"} if "fp8" in arch.features else set())
    details = {
        "compute capability": f"{found.major}.{found.minor}",
        "multiprocessors": str(found.multi_processor_count),
        "torch": f"{torch.__version__} for CUDA {torch.version.cuda}",
        "triton": _version("triton"),
        **card_details(str(found.uuid) if hasattr(found, "uuid") else None),
    }
    return Device(
        backend=Cuda.name,
        name=found.name,
        torch_name=f"cuda:{index}",
        arch=f"sm_{found.major}{found.minor}",
        memory=found.total_memory,
        dtypes=dtypes,
        features=arch.features,
        details=details,
    )


def _interpreter() -> list[Device] | Unavailable:
    if importlib.util.find_spec("triton") is None:
        return Unavailable("TRITON_INTERPRET=1 is set and triton is not installed", "pip install triton")
    return [
        Device(
            backend=Cuda.name,
            name=f"Triton {_version('triton')} interpreter",
            torch_name="cpu",
            arch=INTERPRETER,
            dtypes=FLOATS | {"float8_e4m3fn"},
            features=INTERPRETER_FEATURES,
            details={"checks": "what kernels compute", "does not check": "speed, graphs, pools, asynchronous copies"},
        )
    ]


def _without() -> str:
    """What can be checked without a GPU, where Triton is there to do it."""
    if importlib.util.find_spec("triton") is None:
        return ""
    return "; without a GPU, `TRITON_INTERPRET=1 turbort check cuda` judges what the Triton kernels compute"


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
