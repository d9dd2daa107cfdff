"""What an NVIDIA architecture can do, as data. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arch:
    """One generation.

    Attributes:
        capability: ten times the major plus the minor compute capability (90 for sm_90).
        shared: shared memory that one block may use, in bytes.
        features: tags that kernels require.
        mma: the instruction, as it reads in PTX, that an int8 matrix product must become.
    """

    capability: int
    shared: int
    features: frozenset[str]
    mma: str

    @property
    def name(self) -> str:
        return f"sm_{self.capability}"


_BASE = frozenset({"cuda", "triton", "int8", "bf16", "graph"})

# Shared memory per block: "CUDA C++ Programming Guide", table of technical specifications per compute capability
# (the opt-in maximum: 1 KiB less than the multiprocessor has).
ARCHS = {
    row.capability: row
    for row in (
        Arch(80, 163 << 10, _BASE, "mma.sync"),
        Arch(86, 99 << 10, _BASE, "mma.sync"),
        Arch(87, 163 << 10, _BASE, "mma.sync"),
        Arch(89, 99 << 10, _BASE | {"fp8"}, "mma.sync"),
        Arch(90, 227 << 10, _BASE | {"fp8", "tma", "wgmma"}, "wgmma"),
        Arch(100, 227 << 10, _BASE | {"fp8", "tma", "tcgen05"}, "tcgen05"),
        Arch(103, 227 << 10, _BASE | {"fp8", "tma", "tcgen05"}, "tcgen05"),
        Arch(120, 99 << 10, _BASE | {"fp8", "tma"}, "mma.sync"),
        Arch(121, 99 << 10, _BASE | {"fp8", "tma"}, "mma.sync"),
    )
}

INTERPRETER = "interpreter"
"""The arch of the stand-in device that Triton's interpreter provides: kernels run on the CPU, one program at a time."""

INTERPRETER_FEATURES = frozenset({"triton", "int8", "fp8", "bf16"})


def nearest(capability: int) -> Arch | None:
    """The newest known generation that is not newer than `capability`; None below sm_80."""
    known = [row for row in ARCHS if row <= capability]
    return ARCHS[max(known)] if known else None
