"""Comparing a result with the truth: normalised mean square error, in all and per slice, against a budget.

`nmse(y) = sum((y - r)^2) / sum(r^2)` over the positions where the reference is finite (ggml's measure); the
allowance `max(max_nmse, slack * nmse(reference))` follows flash-attention's rule that a kernel may make at
most twice the error of a plain implementation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from turbort.precision import Precision
from turbort.quant.qtensor import QTensor
from turbort.testing.values import Leaf, all_same_bits, tensors

SLICE_FLOOR = 20.0
"""A slice (row, column, frame) may miss by this multiple of the floor for the whole tensor."""
SLICE_SLACK = 4.0
"""...or by this multiple of the reference's own worst slice."""
FEW = 64
"""Slices with fewer elements are compared with the mean slice's energy."""


class CheckFailed(Exception):
    """A kernel broke one rule; `check` names the rule, and `also` the other rules it broke on the same case."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check
        self.also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Errors:
    """How far a result is from the truth: over the whole tensor, and over its worst slice."""

    nmse: float
    worst: float
    where: str = ""


def as_float64(leaf: Leaf) -> Tensor:
    """Values on the CPU in fp64."""
    dense = leaf.dequantize(torch.float32) if isinstance(leaf, QTensor) else leaf
    return dense.detach().to("cpu").to(torch.float64)


class Measure:
    """Errors of results against one truth (fp64, CPU), over the positions where `finite` holds."""

    def __init__(self, truth: Tensor, finite: Tensor | None = None) -> None:
        self._finite = None if finite is None or bool(finite.all()) else finite
        self._truth = truth if self._finite is None else torch.where(self._finite, truth, 0.0)
        energy = self._truth.square()
        self._total = float(energy.sum())
        self._shares = [(name, axes, _scale(s, energy.numel())) for name, axes, s in _slices(energy)]

    def errors(self, result: Leaf) -> Errors:
        """Over the whole tensor and over its worst slice; a slice is one index of an axis, or one row."""
        y = as_float64(result)
        if self._finite is not None:
            y = torch.where(self._finite, y, 0.0)
        wrong = (y - self._truth).square_()
        worst, where = 0.0, ""
        for name, axes, energy in self._shares:
            share = wrong.sum(axes) / energy
            high = float(share.max())
            if high > worst:
                worst, where = high, f"{name} {int(share.argmax())}"
        return Errors(_ratio(float(wrong.sum()), self._total), worst, where)


def _slices(energy: Tensor) -> list[tuple[str, list[int], Tensor]]:
    """Name, summed axes and energy of each slicing: a wrong tail vanishes in the mean of a large tensor, not here."""
    every = range(energy.dim())
    found = [(f"axis {axis} index", [i for i in every if i != axis]) for axis in every if energy.shape[axis] > 1]
    if energy.dim() > 2:
        found.append(("row", [energy.dim() - 1]))
    return [(name, axes, energy.sum(axes) if axes else energy) for name, axes in found if axes]


def _scale(energy: Tensor, elements: int) -> Tensor:
    """What the error of a slice is divided by: its own energy, but never a negligible part of the mean slice's.

    Of a few elements the energy can be small by chance while the error is not; these are held to the mean slice.
    """
    few = elements // energy.numel() < FEW
    return torch.maximum(energy, energy.mean() * (1.0 if few else 1e-4)).clamp_min(1e-300)


def _ratio(wrong: float, energy: float) -> float:
    if energy > 0:
        return wrong / energy
    return 0.0 if wrong == 0 else math.inf


@dataclass(frozen=True)
class Expected:
    """What one output must be like: the reference's result, the truth in fp64, and the reference's own errors."""

    name: str
    reference: Leaf
    measure: Measure
    finite: Tensor
    own: Errors

    @staticmethod
    def of(name: str, reference: Leaf, truth: Tensor) -> Expected:
        """Measure the reference against the truth."""
        finite = as_float64(reference).isfinite()
        measure = Measure(truth, finite)
        return Expected(name, reference, measure, finite, measure.errors(reference))


@dataclass(frozen=True)
class Verdict:
    """The measured error and what was allowed."""

    nmse: float
    budget: float


def check_form(name: str, result: Leaf, reference: Leaf, check: str = "form") -> None:
    """Same kind, shape, dtype and (for a QTensor) scheme and scale shape as the reference."""
    if type(result) is not type(reference):
        raise CheckFailed(check, f"{name} is a {type(result).__name__}, the reference returns a {type(reference).__name__}")
    pairs: list[tuple[str, object, object]] = [
        ("shape", tuple(result.shape), tuple(reference.shape)),
        ("dtype", result.dtype, reference.dtype),
    ]
    if isinstance(result, QTensor) and isinstance(reference, QTensor):
        pairs += [
            ("scheme", result.scheme, reference.scheme),
            ("dtype of the values", result.values.dtype, reference.values.dtype),
            ("shape of the scales", tuple(result.scales.shape), tuple(reference.scales.shape)),
            ("dtype of the scales", result.scales.dtype, reference.scales.dtype),
        ]
    for what, got, want in pairs:
        if got != want:
            raise CheckFailed(check, f"{what} of {name} is {got}, the reference's is {want}")


def check_finite(result: Leaf, expected: Expected, check: str = "finite") -> None:
    """No NaN or infinity where the reference has none."""
    bad = ~as_float64(result).isfinite() & expected.finite
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise CheckFailed(
            check,
            f"{int(bad.sum())} of {bad.numel()} values of {expected.name} are not finite (unwritten, or overflow), first {first}",
        )


def same_leaf(a: Leaf, b: Leaf) -> bool:
    """Whether two outputs agree bit by bit."""
    return all_same_bits(list(tensors(a)), list(tensors(b)))


def judge(result: Leaf, expected: Expected, precision: Precision, check: str = "budget") -> Verdict:
    """The error of one output against its budget; raises CheckFailed when it is over, in all or in one slice.

    Anything wrong with the output is reported as `check`; only `budget` tells form and finiteness apart.
    """
    plain = check == "budget"
    check_form(expected.name, result, expected.reference, "form" if plain else check)
    own = expected.own
    budget = max(precision.max_nmse, precision.slack * own.nmse)
    if same_leaf(result, expected.reference):
        return Verdict(own.nmse, budget)
    check_finite(result, expected, "finite" if plain else check)
    got = expected.measure.errors(result)
    if not got.nmse <= budget:
        raise CheckFailed(
            check, f"error of {expected.name} is {got.nmse:.2e}, allowed is {budget:.2e} (the reference makes {own.nmse:.2e})"
        )
    local = max(SLICE_FLOOR * precision.max_nmse, SLICE_SLACK * own.worst)
    if not got.worst <= local:
        raise CheckFailed(
            check,
            f"error of {expected.name} at {got.where} is {got.worst:.2e}, allowed in one slice is {local:.2e} "
            f"(the reference makes {own.worst:.2e})",
        )
    return Verdict(got.nmse, budget)
