"""What a serialised executable is good for, as data: it may stand in for a compilation only where all of it is equal.

The program is known by what it is made from (torch's graph, the calls in it, this package's source), not by its StableHLO:
Mosaic writes the paths of source files into that, and another version of its own format when no device is there.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from turbort_tpu.kernels import common

if TYPE_CHECKING:
    from turbort_tpu.jax_executor.program import Staged

_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_SOURCES = ("bridge", "jax_executor", "kernels")


@dataclass(frozen=True)
class Signature:
    """Of an executable, or of a program that wants one.

    Attributes:
        device: JAX's name of the kind of device; for XLA:CPU with the digest of the processor's features.
        chips: how many devices run it together.
        versions: of jax and jaxlib, and of libtpu where it compiles.
        settings: flags of the compiler and the settings of jax that change a program.
        source: digest of the source that turns a graph into a program.
        inputs: the tensors among the step's arguments, such as `bfloat16[2,16,3,8,8]`.
        program: digest of the graph, its calls, and the shapes of all that it holds.
    """

    device: str
    chips: int
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    source: str
    inputs: tuple[str, ...]
    program: str

    @classmethod
    def of(cls, staged: Staged, device: Any) -> Signature:
        """Of a program for this device, which need not be here."""
        names = ("jax", "jaxlib", "libtpu") if device.platform == "tpu" else ("jax", "jaxlib")
        return cls(
            _kind(device),
            staged.spread.mesh.size if staged.spread else 1,
            {name: _version(name) for name in names},
            _settings(),
            _source(),
            tuple(map(_text, staged.inputs)),
            _program(staged),
        )

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Signature:
        """The same from what `asdict` made of it and JSON has carried."""
        return cls(**{**data, "inputs": tuple(data["inputs"])})

    def unlike(self, wanted: Signature) -> list[str]:
        """Why an executable with this signature does not serve `wanted`, most telling reason first; empty when it does."""
        reasons = []
        if self.device != wanted.device:
            reasons.append(f"it is for {self.device}, and this is {wanted.device}")
        for name in sorted({*self.versions, *wanted.versions}):
            there, here = self.versions.get(name, "absent"), wanted.versions.get(name, "absent")
            if there != here:
                reasons.append(f"it was compiled with {name} {there}, and this is {name} {here}")
        if self.chips != wanted.chips:
            reasons.append(f"it is for {self.chips} chip(s), and this run is on {wanted.chips}")
        for name in sorted({*self.settings, *wanted.settings}):
            there, here = self.settings.get(name, ""), wanted.settings.get(name, "")
            if there != here:
                reasons.append(f"it was compiled with {name}={there!r}, and here it is {here!r}")
        if self.source != wanted.source:
            reasons.append("turbort_tpu has changed since it was compiled")
        if self.inputs != wanted.inputs:
            reasons.append(self._other_inputs(wanted))
        if self.program != wanted.program:
            reasons.append("the step computes something else: another plan, model or version of torch")
        return reasons

    def _other_inputs(self, wanted: Signature) -> str:
        if len(self.inputs) != len(wanted.inputs):
            return f"it takes {len(self.inputs)} tensors, and this step has {len(wanted.inputs)}"
        there, here = next(pair for pair in zip(self.inputs, wanted.inputs, strict=True) if pair[0] != pair[1])
        return f"it takes {there} where this step has {here}"


def _program(staged: Staged) -> str:
    leaves, tree = jax.tree.flatten(staged.held)
    # What Pallas is asked for decides what a kernel becomes.
    parts = [f"interpret={common.interpret()!r}", staged.program.text, str(tree), *map(_text, leaves)]
    return _digest("\n".join(parts).encode())


def _text(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _kind(device: Any) -> str:
    return str(device.device_kind) if device.platform == "tpu" else f"{device.device_kind} {_processor()}"


@cache
def _processor() -> str:
    """Architecture and features of this processor: XLA:CPU compiles for exactly them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()}-{_digest(features.encode())}"


def _settings() -> dict[str, str]:
    flags = {name: os.environ.get(name, "") for name in _FLAGS}
    return flags | {name: str(getattr(jax.config, name)) for name in ("jax_enable_x64", "jax_default_matmul_precision")}


@cache
def _source() -> str:
    root = Path(__file__).parents[1]
    files = sorted(path for folder in _SOURCES for path in (root / folder).rglob("*.py"))
    return _digest(b"".join(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() for path in files))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
