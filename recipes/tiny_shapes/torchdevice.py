"""A turbort plugin: the reference kernels on a CUDA device, so that evaluation of real plans is quick. No speed is claimed."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from turbort.backend import Backend, Device, MemoryStats, Unavailable
from turbort.hookspecs import hookimpl
from turbort.kernel import Kernel
from turbort.reference import reference_kernels

NAME = "torch-device"


class TorchDevice(Backend):
    """What the `reference` backend computes on a CPU, on this process's CUDA device."""

    name = NAME

    def probe(self) -> list[Device] | Unavailable:
        if not torch.cuda.is_available():
            return Unavailable("torch finds no CUDA device", "evaluate on the CPU")
        index = torch.cuda.current_device()
        dtypes = frozenset({"float32", "bfloat16", "float16", "int8", "float8_e4m3fn"})
        return [Device(self.name, torch.cuda.get_device_name(index), f"cuda:{index}", "any", dtypes=dtypes)]

    def kernels(self) -> Iterable[Kernel]:
        yield from reference_kernels(self.name)

    def synchronize(self, device: Device) -> None:
        torch.cuda.synchronize(device.torch_name)

    def memory(self, device: Device) -> MemoryStats:
        return MemoryStats(torch.cuda.memory_allocated(device.torch_name), torch.cuda.max_memory_allocated(device.torch_name))


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """This module's one backend."""
    return (TorchDevice(),)
