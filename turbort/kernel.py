"""Calls and kernels: what the planner knows of a call site, and one backend's way of computing one op."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbort.backend import Device


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype (`bfloat16`, `int8`, ...) of a tensor that does not exist yet."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) or "scalar"


@dataclass(frozen=True)
class Call:
    """What the planner knows about a call site before any tensor exists.

    `args` maps parameter names of the op's reference to a TensorSpec, None or a plain value.
    `consumers` are the paths of the sites that read the output, when nothing else reads it; `sources` those of the sites whose
    outputs the arguments are made of, directly or through plain tensor functions. `makers` maps the names of arguments that are
    the whole output of one site to its path.
    """

    op: str
    path: str
    role: str
    args: Mapping[str, Any] = field(default_factory=dict)
    consumers: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    makers: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    def shapes(self) -> list[str]:
        """Tensor shapes in argument order, as shown in plans."""
        return [str(v) for v in self.args.values() if isinstance(v, TensorSpec)]


Rejects = Callable[[Call, "Device"], "str | None"]
Wants = Callable[[Call], Mapping[str, str]]


@dataclass(frozen=True)
class Kernel:
    """One backend's way of computing one op: where it lives, what it refuses, how it packs weights.

    Attributes:
        op: name of the op.
        name: name of the kernel, unique per backend and op; plans show `backend/name`.
        target: `"module:attribute"` of the function, imported when a plan is bound and not before.
            It takes the reference's arguments (`precision=` and `emit=` only where the reference has them).
        precisions: names of the precisions it computes.
        rejects: a sentence with the number that broke a rule, or None when the call is accepted.
        requires: feature tags the device must have.
        priority: higher is tried first.
        pack: `"module:attribute"` of `pack(weight, bias=None) -> object`, run once per weight at load; the
            kernel gets its result in place of the weight. None means the logical QTensor or tensor itself.
        emits: QTensor schemes in which it can return its output.
        capturable: whether a CUDA/NPU graph may capture it.
        wants: the schemes in which it would rather be handed arguments of a call, by name; it takes plain ones, too.
        layout: the physical layout of activations that it takes and returns, see `turbort.layouts`.
    """

    op: str
    name: str
    target: str
    precisions: tuple[str, ...]
    rejects: Rejects | None = None
    requires: frozenset[str] = frozenset()
    priority: int = 0
    pack: str | None = None
    emits: tuple[str, ...] = ()
    capturable: bool = True
    layout: str = "row"
    wants: Wants | None = None

    def load(self) -> Callable[..., Any]:
        """Import and return the target function."""
        return load_target(self.target)

    def load_pack(self) -> Callable[..., Any] | None:
        return load_target(self.pack) if self.pack else None

    def refusal(self, call: Call, precision: str, device: Device) -> str | None:
        """Why this kernel cannot compute `call` at `precision` on `device`; None if it can."""
        if precision not in self.precisions:
            return f"computes {', '.join(self.precisions)}, not {precision}"
        missing = sorted(self.requires - device.features)
        if missing:
            return f"needs {', '.join(missing)}, which {device.name} lacks"
        return self.rejects(call, device) if self.rejects else None


def load_target(target: str) -> Callable[..., Any]:
    """Import `"module:attribute"`."""
    module, _, attribute = target.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return loaded
