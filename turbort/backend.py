"""Backends and devices: the seam a chip team implements. No torch is imported until a method needs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from turbort.kernel import Kernel

if TYPE_CHECKING:
    from pathlib import Path

    from turbort.models.config import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile
    from turbort.registry import Registry

BACKEND_API = 1


@dataclass(frozen=True)
class Device:
    """One usable device.

    Attributes:
        backend: name of the backend that found it.
        name: what people call it (`NVIDIA H100 80GB HBM3`).
        torch_name: what torch calls it (`cuda:0`, `npu:0`, `cpu`).
        arch: architecture as profiles match it, with globs (`sm_90`, `Ascend910B3`, `v5e`, `x86_64`).
        memory: bytes in all, or None when unknown.
        dtypes: storage dtypes its kernels can compute in (`float32`, `bfloat16`, ...): the truth table.
        features: tags that kernels require (`int8`, `fp8`, `tma`, `graph`, ...).
    """

    backend: str
    name: str
    torch_name: str
    arch: str
    memory: int | None = None
    dtypes: frozenset[str] = frozenset({"float32"})
    features: frozenset[str] = frozenset()
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unavailable:
    """Why a backend cannot run here, and the command that would change that."""

    reason: str
    fix: str


@dataclass(frozen=True)
class MemoryStats:
    """Bytes on a device; None where the device cannot say.

    `used` and `peak` are tensors, now and at most since `reset_peak`; `reserved` and `reserved_peak` are what the allocator holds
    for them, which is what others cannot have.
    """

    used: int | None = None
    peak: int | None = None
    total: int | None = None
    reserved: int | None = None
    reserved_peak: int | None = None


class Switches(Protocol):
    """Call sites of a step that have a second, pre-bound kernel each, and which of them run it now."""

    @property
    def key(self) -> Hashable:
        """Equal keys mean equal kernels at every site."""

    def everything_promoted(self) -> AbstractContextManager[None]:
        """Every second kernel in place inside the block."""


class Backend(ABC):
    """Finds devices of one kind, supplies their kernels, owns memory pools, graphs, streams and timing.

    Only `name`, `probe` and `kernels` must be given. The three ledgers map case-id globs to reasons:
    `unsupported` is permanent, `known_issues` are expected failures that must name an issue, `quarantine`
    is never run because it would take the process or the device down.
    """

    name: str
    api: int = BACKEND_API
    unsupported: Mapping[str, str] = {}
    known_issues: Mapping[str, str] = {}
    quarantine: Mapping[str, str] = {}
    captures: bool = False
    """Whether `compile_step` keeps copies of a step's inputs and output for replay; the memory forecast counts them."""

    @abstractmethod
    def probe(self) -> list[Device] | Unavailable:
        """The devices of this machine; must be cheap and must not raise."""

    @abstractmethod
    def kernels(self) -> Iterable[Kernel]:
        """Every kernel this backend offers, whatever the device."""

    def synchronize(self, device: Device) -> None:
        """Wait until the device has done what it was asked."""

    def start(self, device: Device) -> None:
        """Begin to bring the device up where that takes a while; must not wait for it, and must not raise."""

    def memory(self, device: Device) -> MemoryStats:
        """Bytes in use and reserved on the device, their peaks, and how many there are."""
        return MemoryStats(total=device.memory)

    def reset_peak(self, device: Device) -> None:
        """Start a new peak-memory measurement."""

    def empty_cache(self, device: Device) -> None:
        """Give unused cached memory back to the device."""

    def pool(self, device: Device, strategy: str) -> AbstractContextManager[Any]:
        """The memory pool that allocations of a session come from (`memory.strategy` of the profile)."""
        return nullcontext()

    def compile_step(self, step: Callable[..., Any], device: Device) -> Callable[..., Any]:
        """Turn one denoising step into its fastest callable (CUDA graph, NPUGraph, XLA); identity by default."""
        return step

    @property
    def switches_kernels(self) -> bool:
        """Whether call sites may change kernels between two calls of a compiled step.

        True for a backend that runs steps as they are. One that compiles them says True once its `compile_switched` keeps a
        program per `Switches.key`.
        """
        return type(self).compile_step is Backend.compile_step

    def compile_switched(self, step: Callable[..., Any], device: Device, switches: Switches) -> Callable[..., Any]:
        """As `compile_step`, for a step whose sites run the kernels that `switches.key` names at the time of a call.

        Equal keys mean equal kernels. A program for a key that was not seen before must be ready within one step's time:
        `switches.everything_promoted()` lets the first compilation run every second kernel once, so that later ones
        compile nothing. Called only where `switches_kernels` is true.
        """
        return step

    def emulate(self, chip: str = "") -> None:
        """Replace the vendor's driver and arithmetic by stand-ins for the rest of this process, before torch is imported.

        `chip` names what to emulate (default: the backend's choice). Devices found afterwards carry the feature
        `emulated` and say so in their name. Raises InputError for a backend that has no emulator.
        """
        from turbort.errors import InputError

        raise InputError(f"backend {self.name} cannot be emulated", fix="leave out --emulated")

    def op_times(self, device: Device, call: Callable[[], Any]) -> Mapping[str, float]:
        """Seconds of one `call`'s kernels by class of work (`gemm`, `attention`, `quantisation`, ...); empty: cannot trace."""
        return {}

    def tune(self, device: Device, plan: Plan) -> Iterator[Mapping[str, Any]]:
        """Try the kernels' configurations at the plan's sizes and keep the fastest for this machine.

        Rows: `kernel`, `key`, `config`, `ms`, and `shipped_ms` of what would be used otherwise.
        """
        return iter(())

    def explain(self, device: Device) -> Mapping[str, str]:
        """Rows for `turbort devices` and `turbort doctor`."""
        return device.details

    def stand_in(self, arch: Sequence[str]) -> Device | None:
        """A device of one of these architectures (globs) that need not be here, so that plans can be made for it."""
        return None

    def review(self, spec: ModelSpec, plan: Plan, device: Device) -> Sequence[str]:
        """Remarks on a plan, shown with it; raises TurbortError for a plan that cannot run on the device."""
        return ()

    def offline_targets(self) -> Sequence[str]:
        """Architectures that `check_offline` can judge on a machine without such a device."""
        return ()

    def check_offline(self, targets: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Compile every kernel for these architectures; rows with `target`, `case`, `ok`, `detail` and figures."""
        return iter(())

    def compile_ahead(
        self, spec: ModelSpec, profile: Profile, registry: Registry, out: Path, size: tuple[int, int], frames: int, plan: Plan
    ) -> Mapping[str, Any] | None:
        """Write compiled programs of a planned model into folder `out` and return what is known of them; None: cannot."""
        return None

    def use_ahead(self, folder: Path) -> None:
        """Take programs from a folder that `compile_ahead` has written, where a run would compile the same ones."""
