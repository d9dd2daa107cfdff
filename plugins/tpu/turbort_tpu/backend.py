"""The TPU backend: devices, kernels, compiled steps, and a review of plans before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from turbort.backend import Backend, Device, MemoryStats, Unavailable
from turbort.errors import InputError
from turbort.kernel import Kernel
from turbort_tpu import fit, probe
from turbort_tpu.generations import GENERATIONS, GIB, Generation
from turbort_tpu.table import tpu_kernels

if TYPE_CHECKING:
    from pathlib import Path

    from turbort.models.config import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile
    from turbort.registry import Registry

_FORMAT_OF = {"w8a8": "int8", "int8": "int8", "int8-fp8": "int8", "fp8": "fp8"}


class Tpu(Backend):
    """Google TPUs through JAX: one jitted program per step and shape, Pallas kernels inside it."""

    name = "tpu"

    def __init__(self) -> None:
        self._compiled_peak = 0

    def probe(self) -> list[Device] | Unavailable:
        return probe.find()

    def kernels(self) -> Iterable[Kernel]:
        return tpu_kernels()

    def stand_in(self, arch: Sequence[str]) -> Device | None:
        for row in GENERATIONS.values():
            if any(fnmatchcase(row.name, pattern) for pattern in arch):
                return probe.describe(row, f"{row.title} (not on this machine)")
        return None

    def review(self, spec: ModelSpec, plan: Plan, device: Device) -> Sequence[str]:
        """Notes on precisions that bring no gain; InputError for a model that does not fit, with what would."""
        generation = GENERATIONS.get(device.arch)
        if generation is None:
            return ()
        self._require_memory(spec, plan, generation)
        return list(no_gains(plan, generation))

    def _require_memory(self, spec: ModelSpec, plan: Plan, generation: Generation) -> None:
        from turbort.models.spec import MODELS

        header = plan.header
        length = fit.tokens(spec, tuple(header["size"]), header["frames"])
        linear = linear_precision(plan)
        figure = fit.need(spec.dit, length, header["batch"], linear)
        if figure.total <= generation.hbm:
            return
        raise InputError(
            f"{spec.name} does not fit in the {generation.hbm / GIB:.2f} GiB of one {generation.title}: it needs {figure} "
            f"with linears at {linear}, batch {header['batch']} and {length} tokens",
            tried=[f"fits: {line}" for line in fit.what_fits(spec, length, header["batch"], linear, generation, MODELS)],
            fix="choose one of these, or fewer frames with --frames",
        )

    def compile_step(self, step: Callable[..., Any], device: Device) -> Callable[..., Any]:
        from turbort_tpu.bridge.executor import active

        return active().compile_step(step, self._note_peak)

    def _note_peak(self, size: int) -> None:
        self._compiled_peak = max(self._compiled_peak, size)

    def synchronize(self, device: Device) -> None:
        from turbort_tpu.bridge.executor import active

        active().synchronize()

    def memory(self, device: Device) -> MemoryStats:
        """What the runtime says on a TPU; unknown elsewhere (the compiler's peak is a row of `explain`)."""
        if probe.emulated() is not None:
            return MemoryStats()
        from turbort_tpu.bridge.executor import active

        return active().memory(device.memory)

    def explain(self, device: Device) -> Mapping[str, str]:
        rows = dict(device.details)
        if self._compiled_peak:
            rows["peak, by the compiler"] = f"{self._compiled_peak / GIB:.2f} GiB"
        return rows

    def offline_targets(self) -> Sequence[str]:
        return tuple(GENERATIONS)

    def check_offline(self, targets: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        from turbort_tpu.aot.check import check_targets

        return check_targets(targets)

    def compile_ahead(
        self, spec: ModelSpec, profile: Profile, registry: Registry, out: Path, size: tuple[int, int], frames: int, plan: Plan
    ) -> Mapping[str, Any]:
        from turbort_tpu.aot.compile import compile_step

        return compile_step(spec, profile, registry, out, plan)

    def use_ahead(self, folder: Path) -> None:
        from turbort_tpu.bridge.executor import active

        active().use_ahead(folder)


def linear_precision(plan: Plan) -> str:
    """The precision that most linears inside the blocks run at."""
    found = [choice.precision for choice in plan if choice.op == "linear" and choice.path.startswith("dit/blocks.")]
    return max(set(found), key=found.count) if found else "bf16"


def no_gains(plan: Plan, generation: Generation) -> Iterator[str]:
    """One sentence per 8-bit format that the profile asked for and this generation does not speed up."""
    wanted: dict[str, int] = {}
    for choice in plan:
        asked = {choice.precision, (choice.note or "").removeprefix("wanted ")}
        for precision in asked & set(_FORMAT_OF):
            wanted[_FORMAT_OF[precision]] = wanted.get(_FORMAT_OF[precision], 0) + 1
    for name, sites in wanted.items():
        if name in generation.no_gain:
            yield f"{generation.no_gain[name]} ({sites} call sites asked for it)"
