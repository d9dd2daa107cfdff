"""The CUDA backend: devices, memory, pools and CUDA graphs. torch is imported when a method needs it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from fnmatch import fnmatchcase
from threading import Thread
from typing import TYPE_CHECKING, Any

from turbort.backend import Backend, Device, MemoryStats, Switches, Unavailable
from turbort.errors import UnavailableError
from turbort.kernel import Kernel
from turbort_cuda.arch import ARCHS, INTERPRETER, INTERPRETER_FEATURES, nearest
from turbort_cuda.nvml import card_details, driver_version
from turbort_cuda.table import kernel_table

if TYPE_CHECKING:
    from pathlib import Path

    from turbort.models.config import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile
    from turbort.registry import Registry

FLOATS = frozenset({"float32", "bfloat16", "float16", "int8"})


class Cuda(Backend):
    """NVIDIA GPUs from compute capability 8.0 on.

    With `TRITON_INTERPRET=1` and no GPU it offers one stand-in device instead: Triton's interpreter on the CPU, so
    that `turbort check cuda` can judge what the kernels compute where there is nothing to run them on.
    """

    name = "cuda"
    captures = True

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

    def start(self, device: Device) -> None:
        """Create the context on a thread: the driver does it without Python, which plans meanwhile."""
        if device.arch == INTERPRETER:
            return
        import torch

        def create() -> None:
            with suppress(Exception):  # whoever needs the device will be told
                torch.empty(1, device=device.torch_name)

        Thread(target=create, name="turbort-start", daemon=True).start()

    def memory(self, device: Device) -> MemoryStats:
        """What torch's allocator holds, and its peaks since `reset_peak`.

        Loading asks once per tensor. `memory_allocated` flattens and sorts all of torch's figures to return one of them, five
        times as long as it takes to get them.
        """
        if device.arch == INTERPRETER:
            return MemoryStats()
        import torch

        found = torch.cuda.memory_stats_as_nested_dict(device.torch_name)
        if not found:  # nothing was ever put there
            return MemoryStats(used=0, peak=0, total=device.memory, reserved=0, reserved_peak=0)
        used, held = found["allocated_bytes"]["all"], found["reserved_bytes"]["all"]
        return MemoryStats(used["current"], used["peak"], device.memory, held["current"], held["peak"])

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

    def stand_in(self, arch: Sequence[str]) -> Device | None:
        """The oldest generation that these globs name, for plans and for compiling; it cannot run anything."""
        row = next((row for row in ARCHS.values() if any(fnmatchcase(row.name, glob) for glob in arch)), None)
        if row is None:
            return None
        dtypes = FLOATS | ({"float8_e4m3fn"} if "fp8" in row.features else set())
        title = f"{row.name} (not on this machine)"
        return Device(Cuda.name, title, "cuda:0", row.name, dtypes=dtypes, features=row.features)

    def compile_ahead(
        self, spec: ModelSpec, profile: Profile, registry: Registry, out: Path, size: tuple[int, int], frames: int, plan: Plan
    ) -> Mapping[str, Any]:
        """Cubins of every Triton kernel that the plan launches, for each architecture of the profile; see `turbort_cuda.aot`."""
        if importlib.util.find_spec("triton") is None:
            raise UnavailableError("triton is not installed, so nothing can be compiled", fix="pip install triton")
        from turbort.planner import recorded
        from turbort_cuda.aot import compile_plan

        sites = recorded(spec, profile, size=size, frames=frames, batch=int(plan.header["batch"]))
        return compile_plan(plan, sites, registry, out, profile.target.arch)

    def use_ahead(self, folder: Path) -> None:
        from turbort_cuda.aot import use

        use(folder)

    def op_times(self, device: Device, call: Callable[[], Any]) -> Mapping[str, float]:
        """Every kernel of one call, by class: see `turbort_cuda.trace`."""
        if device.arch == INTERPRETER:
            return {}
        from turbort_cuda.trace import classes, kernels

        return classes(kernels(call))

    def tune(self, device: Device, plan: Plan) -> Iterator[Mapping[str, Any]]:
        if device.arch == INTERPRETER:
            return iter(())
        from turbort_cuda.tune import tune_plan

        return tune_plan(plan, device)

    def explain(self, device: Device) -> Mapping[str, str]:
        return device.details

    def offline_targets(self) -> Sequence[str]:
        if importlib.util.find_spec("triton") is None:
            return ()
        from turbort_cuda.offline import GENERATIONS

        return tuple(f"sm_{capability}" for capability in GENERATIONS)

    def check_offline(self, targets: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Compile every kernel for these architectures; see `turbort_cuda.offline`."""
        from turbort_cuda.offline import check_targets

        return check_targets(targets)


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
    """What can be checked without a GPU, where Triton is there to do it, and what cannot."""
    if importlib.util.find_spec("triton") is None:
        return ""
    return (
        ". Without a GPU, `turbort check cuda --targets all` compiles every Triton kernel for six generations, and "
        "`TRITON_INTERPRET=1 turbort check cuda` judges what they compute; speed, graphs and pools stay unchecked"
    )


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
