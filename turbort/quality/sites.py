"""Per-op errors: the kernels of a plan on the inputs that the unquantised run gives to the same call sites.

nmse(y) = sum((y - r)^2) / sum(r^2), r the output of the unquantised site. A site passes when
nmse <= max(max_nmse of its precision, slack x nmse of the op's reference at that precision on the same input): the rule
of the conformance suite, on real activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from turbort.models.dit_layers import TokenGrid
from turbort.op import Slot, slots
from turbort.plan import Choice, Plan
from turbort.precision import PRECISIONS
from turbort.quality.baseline import is_changed
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize, quantize_time
from turbort.testing.values import leaves

WIDE = 0.6
"""Of the reference's rounding error: int8 kernels make the same; one with plain activations half of it, or less."""
Watch = Callable[["Site", tuple[Any, ...], dict[str, Any]], None]


@dataclass
class Site:
    """One call site: its choice and what was measured.

    Attributes:
        nmse: error over all calls (their errors and energies added up).
        worst: the largest error of one call, relative to what was allowed for that call.
    """

    choice: Choice
    slot: Slot
    owner: nn.Module
    wrong: float = 0.0
    energy: float = 0.0
    calls: int = 0
    worst: float = 0.0
    allowed: float = 0.0
    by_step: dict[int, float] = field(default_factory=dict)
    own: tuple[float, float] | None = None

    @property
    def stayed_wide(self) -> bool:
        """Whether a quantised site makes so little of its precision's rounding error that it cannot have rounded everything.

        Compares the first call's error with that of the op's reference at the site's precision.
        """
        return self.own is not None and self.own[0] < WIDE * self.own[1]

    @property
    def nmse(self) -> float:
        return self.wrong / self.energy if self.energy else (math.inf if self.wrong else 0.0)

    @property
    def passed(self) -> bool:
        return self.worst <= 1.0

    def run(self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """This site's kernel with the baseline's arguments and its own packed weights."""
        changed = list(args)
        for index, name in enumerate(names):
            if name in self.slot.op.weights and index < len(changed):
                changed[index] = _like(getattr(self.owner, name), changed[index])
        return self.slot.fn(*changed, **kwargs)

    def as_data(self) -> dict[str, Any]:
        """The site as plain data."""
        return {
            "path": self.choice.path,
            "op": self.choice.op,
            "role": self.choice.role,
            "precision": self.choice.precision,
            "kernel": self.choice.kernel,
            "nmse": self.nmse,
            "allowed": self.allowed,
            "stayed_wide": self.stayed_wide,
            "over": round(self.worst, 4),
            "calls": self.calls,
            "by_step": {str(step): value for step, value in self.by_step.items()},
        }


class SiteErrors:
    """Compares every site of a plan that differs from the baseline, while the baseline runs.

    Args:
        base, other: the same stage (`dit` or `vae`) of the baseline and of the profile, both bound.
    """

    def __init__(self, plan: Plan, plain: Plan, stage: str, base: nn.Module, other: nn.Module) -> None:
        before = {choice.path: choice for choice in plain}
        theirs = slots(other)
        # The kernels of `other` run inside forwards of `base`, whose grid they must see.
        self._tokens: TokenGrid | None = getattr(other, "tokens", None)
        if self._tokens is not None:
            base.tokens = self._tokens
        self.sites: dict[str, Site] = {}
        self._slots: dict[str, Slot] = {}
        self.step = 0
        choices = {choice.path: choice for choice in plan}
        for path, slot in slots(base).items():
            choice = choices.get(f"{stage}/{path}")
            if choice is None or not is_changed(choice, before[choice.path]):
                continue
            owner = other.get_submodule(path.rpartition(".")[0])
            self.sites[path] = Site(choice, theirs[path], owner)
            self._slots[path] = slot

    @contextmanager
    def watching(self, seen: Watch | None = None) -> Iterator[None]:
        """Measure inside the block; with `seen` call that at every site instead."""
        kept = {path: slot.fn for path, slot in self._slots.items()}
        for path, slot in self._slots.items():
            slot.fn = self._hooked(self.sites[path], slot, slot.fn, seen)
        try:
            yield
        finally:
            for path, slot in self._slots.items():
                slot.fn = kept[path]

    def _hooked(self, site: Site, slot: Slot, fn: Callable[..., Any], seen: Watch | None) -> Callable[..., Any]:
        names = tuple(slot.op.signature.parameters)

        def call(*args: Any, **kwargs: Any) -> Any:
            wanted = fn(*args, **kwargs)
            if seen is not None:
                seen(site, args, kwargs)
            else:
                self._compare(site, names, args, kwargs, wanted)
            return wanted

        return call

    def _compare(self, site: Site, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any], wanted: Any) -> None:
        energy = sum(float(_wide(leaf).square().sum()) for _, leaf in leaves(wanted))
        wrong = _difference(site.run(names, args, kwargs), wanted)
        found = wrong / energy if energy else (math.inf if wrong else 0.0)
        precision = PRECISIONS[site.choice.precision]
        allowed = precision.max_nmse
        first = site.own is None and precision.kind != "float" and energy > 0
        if first or not found <= allowed:
            own = _difference(_reference(site.choice, site.slot, names, args, kwargs, self._tokens), wanted)
            allowed = max(allowed, precision.slack * own / energy if energy else 0.0)
            site.own = site.own if not first else (wrong, own)
        site.wrong += wrong
        site.energy += energy
        site.calls += 1
        site.allowed = max(site.allowed, allowed)
        site.worst = max(site.worst, found / allowed)
        site.by_step[self.step] = max(site.by_step.get(self.step, 0.0), found)


def _reference(
    choice: Choice, slot: Slot, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any], tokens: TokenGrid | None
) -> Any:
    """The op's reference at the site's precision, from the unquantised weights."""
    precision = PRECISIONS[choice.precision]
    given = dict(kwargs)
    changed = list(args)
    frames = tokens.frames if tokens is not None and choice.time_scales else None
    if precision.kind == "linear" and precision.weight_scheme:
        weight = names.index("weight")
        changed[weight] = quantize(changed[weight].float().flatten(1), precision.weight_scheme)
        if precision.emit:
            changed[0] = _quantised(changed[0], precision.emit, frames)
    if slot.op.takes_precision and precision.kind != "float":
        given["precision"] = choice.precision
    if choice.emit and frames is None:
        given["emit"] = choice.emit
    output = slot.op.reference(*changed, **given)
    if not choice.emit or frames is None:
        return output
    if isinstance(output, tuple):
        return *output[:-1], _quantised(output[-1], choice.emit, frames)
    return _quantised(output, choice.emit, frames)


def _quantised(x: Tensor, scheme: str, frames: int | None) -> QTensor:
    """`x` with a scale per token, or per place of `frames` frames."""
    return quantize(x, scheme) if frames is None else quantize_time(x, scheme, frames)


def _difference(got: Any, wanted: Any) -> float:
    """Sum of squared differences over all outputs; infinite where one is not a number."""
    total = 0.0
    for (_, a), (_, b) in zip(leaves(got), leaves(wanted), strict=True):
        total += float((_wide(a) - _wide(b)).square().sum())
    return total if math.isfinite(total) else math.inf


def _wide(leaf: Tensor | QTensor) -> Tensor:
    return leaf.dequantize(torch.float32) if isinstance(leaf, QTensor) else leaf.float()


def _like(weight: Any, plain: Any) -> Any:
    """A parameter in the shape in which the model passes it (matrices are flattened); packed objects as they are."""
    return weight.reshape(plain.shape) if isinstance(weight, Tensor) and isinstance(plain, Tensor) else weight
