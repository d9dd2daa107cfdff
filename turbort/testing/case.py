"""Cases: every kernel of a backend, at every precision it names, on every sample of its op."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from turbort.backend import Device
from turbort.kernel import Kernel
from turbort.op import OpSpec, Sample
from turbort.precision import Precision

FLOAT_DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Variant:
    """How a sample is made concrete: the float dtype of its tensors, and the tile of block-sparse weights."""

    dtype: torch.dtype
    tile: int = 8

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.") + (f" tile {self.tile}" if self.tile != 8 else "")


@dataclass(frozen=True)
class Case:
    """One kernel at one precision on one sample; `id` is its name in reports, filters and ledgers."""

    spec: OpSpec
    kernel: Kernel
    precision: Precision
    sample: Sample
    device: Device

    @property
    def id(self) -> str:
        """`op/kernel/precision/sample`."""
        return f"{self.spec.name}/{self.kernel.name}/{self.precision.name}/{self.sample.id}"

    @property
    def sparse_weights(self) -> bool:
        """Whether the weights are pruned to tiles, which changes the truth and not only the error."""
        return (self.precision.weight_scheme or "").startswith("bsq")

    def variants(self) -> list[Variant]:
        """The first gets every check, the others are only compared with the truth."""
        if self.precision.kind == "float":
            return [Variant(FLOAT_DTYPES[self.precision.name])]
        dtypes = [dtype for dtype in FLOAT_DTYPES.values() if str(dtype).removeprefix("torch.") in self.device.dtypes]
        found = [Variant(dtype) for dtype in dtypes or [torch.float32]]
        if self.sparse_weights:
            found.insert(1, replace(found[0], tile=4))
        return found


def cases(
    backend_kernels: Iterable[Kernel],
    ops: Mapping[str, OpSpec],
    precisions: Mapping[str, Precision],
    device: Device,
    *,
    op: str = "*",
    precision: str = "*",
    sample: str = "*",
    large: bool = False,
) -> Iterator[Case]:
    """All cases that match the globs, ordered so that cases with the same truth follow each other.

    Samples tagged `large` are meant for accelerators and are left out unless `large` is set.
    """
    samples = {spec.name: samples_of(spec) for spec in ops.values() if fnmatchcase(spec.name, op)}
    rows = [
        Case(ops[kernel.op], kernel, precisions[name], one, device)
        for kernel in backend_kernels
        if kernel.op in samples
        for name in kernel.precisions
        if name in precisions and fnmatchcase(name, precision)
        for one in samples[kernel.op]
        if fnmatchcase(one.id, sample) and (large or "large" not in one.tags)
    ]
    order = {name: index for index, name in enumerate(precisions)}
    yield from sorted(rows, key=lambda row: (row.spec.name, row.sample.id, order[row.precision.name], row.kernel.name))


def samples_of(spec: OpSpec) -> tuple[Sample, ...]:
    """The samples of an op."""
    return tuple(spec.samples())
