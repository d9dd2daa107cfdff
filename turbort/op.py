"""Ops and call sites. An op is its reference function plus the samples that define what correct means."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from turbort.precision import FLOATS


@dataclass(frozen=True)
class Sample:
    """One concrete call of an op for conformance.

    `make(generator, dtype, device)` returns the keyword arguments of the reference; weights that have a
    quantised form are plain tensors named in `OpSpec.weights` and are quantised by the suite.
    `tags` mark what the sample probes (`tail`, `outlier`, `offset`, `real`, `large`, ...).
    """

    id: str
    make: Callable[..., dict[str, Any]]
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class OpSpec:
    """A reference function plus the samples that define what correct means.

    Calling the spec calls the reference, so models run without any backend. `weights` names the arguments
    that hold model weights in a quantisable form; `emits` says whether the op can hand over its output as
    a QTensor (argument `emit`); `precisions` are the contracts under which kernels may offer it.
    """

    name: str
    reference: Callable[..., Any]
    samples: Callable[[], Iterable[Sample]]
    precisions: tuple[str, ...] = FLOATS
    weights: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.reference)

    @property
    def emits(self) -> bool:
        return "emit" in self.signature.parameters

    @property
    def takes_precision(self) -> bool:
        return "precision" in self.signature.parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.reference(*args, **kwargs)


def op(
    *,
    samples: Callable[[], Iterable[Sample]],
    precisions: tuple[str, ...] = FLOATS,
    weights: tuple[str, ...] = (),
    name: str | None = None,
) -> Callable[[Callable[..., Any]], OpSpec]:
    """Declare a function as the reference of an op: `@op(samples=..., precisions=...)`."""

    def wrap(fn: Callable[..., Any]) -> OpSpec:
        return OpSpec(name or fn.__name__, fn, samples, precisions, weights)

    return wrap


@dataclass
class Slot:
    """A call site in a model. It runs the reference until a plan binds a kernel to it.

    `fn` is the only thing called in the sampling loop; `calls` counts executions for the run receipt.
    `role` says what the site is for (`self.qkv`, `ffn.in`, ...): profiles speak of roles, never of layers.
    """

    op: OpSpec
    role: str
    fn: Callable[..., Any] = field(init=False, repr=False)
    provider: str = field(default="reference", init=False)
    precision: str | None = field(default=None, init=False)
    calls: int = field(default=0, init=False)
    earlier: dict[tuple[str, str | None], int] = field(default_factory=dict, init=False, repr=False)
    around: Callable[[Slot, tuple[Any, ...], dict[str, Any]], Any] | None = field(default=None, init=False, repr=False)
    """Called in place of `fn`, whatever that is at the time, with the slot and the arguments: for profiling."""

    def __post_init__(self) -> None:
        self.fn = self.op.reference

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not _compiling():
            self.calls += 1
        return self.fn(*args, **kwargs) if self.around is None else self.around(self, args, kwargs)

    def bind(self, fn: Callable[..., Any], *, provider: str, precision: str | None) -> None:
        """Run `fn` from now on; the receipt shows `provider` (`backend/kernel`) and `precision`."""
        self.fn, self.provider, self.precision, self.calls = fn, provider, precision, 0
        self.earlier.clear()

    def switch(self, fn: Callable[..., Any], *, provider: str, precision: str | None) -> None:
        """Run `fn` from now on, and keep count of what ran before."""
        self.earlier = self.counts()
        self.fn, self.provider, self.precision, self.calls = fn, provider, precision, 0

    def counts(self) -> dict[tuple[str, str | None], int]:
        """Calls since binding by provider and precision, as they were when each call was made."""
        ran = dict(self.earlier)
        if self.calls:
            now = self.provider, self.precision
            ran[now] = ran.get(now, 0) + self.calls
        return ran


def _compiling() -> bool:
    # A count that changes from call to call would make torch.compile compile anew each time.
    import torch

    return torch.compiler.is_compiling()


def slot(spec: OpSpec, role: str) -> Any:
    """A call site for `spec`; typed Any so that models read like ordinary function calls."""
    return Slot(spec, role)


def slots(model: Any) -> Mapping[str, Slot]:
    """Every call site of a torch module by dotted path (`blocks.0.self_attn.q.op`), in module order."""
    found: dict[str, Slot] = {}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Slot):
                found[f"{path}.{attribute}" if path else attribute] = value
    return found


def counted(model: Any) -> Mapping[str, Slot]:
    """Every call site whose calls a receipt counts: `slots(model)`, and those that a plan put beside them.

    The latter quantise for a site of the model with scales shared along time (`model.tokens.quantisers`), within its own call.
    """
    beside: Mapping[str, Slot] = getattr(getattr(model, "tokens", None), "quantisers", {})
    return {**slots(model), **{f"{path}.quantize_time": slot for path, slot in beside.items()}}
