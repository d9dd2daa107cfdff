"""The backend `ascend`: devices, kernels, memory, the AscendCL pool and graphs. No torch at import."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from turbort import Backend, Device, Kernel, MemoryStats, Unavailable
from turbort_ascend.device import EMULATED, OPS, find_devices, make_device
from turbort_ascend.soc import CHIPS
from turbort_ascend.table import kernel_table

if TYPE_CHECKING:
    from pathlib import Path

    from turbort.models.config import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile
    from turbort.registry import Registry

POOL = "acl-pool"
EMULATE = "TURBORT_ASCEND_EMULATED"
GRAPH = "TURBORT_ASCEND_GRAPH"
"""Set to 0 to run steps eagerly."""


class Ascend(Backend):
    """Huawei Ascend NPUs through torch-npu.

    `TURBORT_ASCEND_EMULATED=Ascend910B3` replaces the driver by turbort's stand-in for that chip (from a checkout);
    every device then calls itself emulated.
    """

    name = "ascend"
    captures = True

    def probe(self) -> list[Device] | Unavailable:
        chip = os.environ.get(EMULATE)
        if chip:
            self.emulate(chip)
        return find_devices()

    def emulate(self, chip: str = "") -> None:
        """Put the emulated driver and its arithmetic in place of CANN's, for this whole process."""
        from turbort_ascend.emulated import start

        start(chip or os.environ.get(EMULATE) or "Ascend910B3")

    def kernels(self) -> Iterable[Kernel]:
        return kernel_table()

    def synchronize(self, device: Device) -> None:
        import torch

        torch.npu.synchronize(device.torch_name)  # type: ignore[attr-defined]

    def memory(self, device: Device) -> MemoryStats:
        import torch

        npu: Any = torch.npu  # type: ignore[attr-defined]
        used = npu.memory_allocated(device.torch_name)
        return MemoryStats(used=used, peak=max(used, npu.max_memory_allocated(device.torch_name)), total=device.memory)

    def reset_peak(self, device: Device) -> None:
        import torch

        torch.npu.reset_peak_memory_stats(device.torch_name)  # type: ignore[attr-defined]

    def empty_cache(self, device: Device) -> None:
        import torch

        torch.npu.empty_cache()  # type: ignore[attr-defined]

    def pool(self, device: Device, strategy: str) -> AbstractContextManager[Any]:
        """`acl-pool` is the plugin's own AscendCL pool; any other strategy leaves torch-npu's allocator alone."""
        if strategy != POOL:
            return nullcontext()
        from turbort_ascend.pool import AclPool

        return AclPool(device)

    def compile_step(self, step: Callable[..., Any], device: Device) -> Callable[..., Any]:
        """The step spread over the ranks of an HCCL group, or as an NPUGraph where device and kernels allow one."""
        from turbort_ascend.spread import ranks, spread

        if ranks() > 1:
            return spread(step)  # type: ignore[no-any-return]
        if "graph" not in device.features or os.environ.get(GRAPH) == "0":
            return step
        from turbort_ascend.graph import GraphStep, uncapturable

        return step if uncapturable(step, self.kernels()) else GraphStep(step)

    def stand_in(self, arch: Sequence[str]) -> Device | None:
        """A chip of these globs with every vendor op, for plans and for compiling; it cannot run anything."""
        chip = next((name for name in (*CHIPS, "Ascend310P3") if any(fnmatchcase(name, glob) for glob in arch)), None)
        if chip is None:
            return None
        device = make_device(chip, features=frozenset(OPS) | {"npugraph", "triton-ascend"})
        return replace(device, name=f"{chip} (not on this machine)")

    def compile_ahead(
        self, spec: ModelSpec, profile: Profile, registry: Registry, out: Path, size: tuple[int, int], frames: int, plan: Plan
    ) -> Mapping[str, Any]:
        """The plan's Triton kernels as AscendNPU IR; see `turbort_ascend.aot`."""
        from turbort.planner import recorded
        from turbort_ascend.aot import compile_plan

        sites = recorded(spec, profile, size=size, frames=frames, batch=int(plan.header["batch"]))
        return compile_plan(plan, sites, registry, out, profile.target.arch)

    def explain(self, device: Device) -> Mapping[str, str]:
        rows = dict(device.details)
        rows["vendor ops"] = f"{sum(name.startswith('npu_') for name in device.features)} of those that kernels ask for"
        rows["graph"] = "NPUGraph" if "graph" in device.features else "no"
        rows["arithmetic"] = "emulated" if EMULATED in device.features else "the device's"
        return rows
