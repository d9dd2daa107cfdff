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
from turbort.testing.values import Leaf

SLICE_FLOOR = 20.0
"""A slice (row, column, frame) may miss by this multiple of the floor for the whole tensor."""
SLICE_SLACK = 4.0
"""...or by this multiple of the reference's own worst slice."""


class CheckFailed(Exception):
    """A kernel broke one rule; `check` names the rule."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check


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


def errors(result: Leaf, truth: Tensor, finite: Tensor | None = None) -> Errors:
    """Errors of `result` against `truth` (fp64, CPU), where `finite` holds."""
    y, r = as_float64(result), truth
    if finite is not None:
        y, r = torch.where(finite, y, 0.0), torch.where(finite, r, 0.0)
    wrong, energy = (y - r).square_(), r.square()
    worst, where = 0.0, ""
    for name, e, s in _slices(wrong, energy):
        share = e / torch.maximum(s, s.mean()).clamp_min(1e-300)
        index = int(share.argmax())
        if float(share[index]) > worst:
            worst, where = float(share[index]), f"{name} {index}"
    return Errors(_ratio(float(wrong.sum()), float(energy.sum())), worst, where)


def _slices(wrong: Tensor, energy: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Sums per index of each axis, and per row: a wrong tail vanishes in the mean of a large tensor, not here."""
    found = []
    for axis in range(wrong.dim()):
        if wrong.shape[axis] > 1:
            others = [i for i in range(wrong.dim()) if i != axis]
            found.append((f"axis {axis} index", wrong.sum(others) if others else wrong, energy.sum(others) if others else energy))
    if wrong.dim() > 2:
        found.append(("row", wrong.flatten(0, -2).sum(-1), energy.flatten(0, -2).sum(-1)))
    return found


def _ratio(wrong: float, energy: float) -> float:
    if energy > 0:
        return wrong / energy
    return 0.0 if wrong == 0 else math.inf


@dataclass(frozen=True)
class Expected:
    """What one output must be like: the reference's result, the truth in fp64, and the reference's own errors."""

    name: str
    reference: Leaf
    truth: Tensor
    finite: Tensor
    own: Errors

    @staticmethod
    def of(name: str, reference: Leaf, truth: Tensor) -> Expected:
        """Measure the reference against the truth."""
        finite = as_float64(reference).isfinite()
        return Expected(name, reference, truth, finite, errors(reference, truth, finite))


@dataclass(frozen=True)
class Verdict:
    """The measured error and what was allowed."""

    nmse: float
    budget: float


def check_form(name: str, result: Leaf, reference: Leaf) -> None:
    """Same kind, shape, dtype and (for a QTensor) scheme and scale shape as the reference."""
    if type(result) is not type(reference):
        raise CheckFailed("form", f"{name} is a {type(result).__name__}, the reference returns a {type(reference).__name__}")
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
            raise CheckFailed("form", f"{what} of {name} is {got}, the reference's is {want}")


def check_finite(result: Leaf, expected: Expected) -> None:
    """No NaN or infinity where the reference has none."""
    bad = ~as_float64(result).isfinite() & expected.finite
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise CheckFailed(
            "finite",
            f"{int(bad.sum())} of {bad.numel()} values of {expected.name} are not finite, the first at {first}: unwritten, or overflow",
        )


def judge(result: Leaf, expected: Expected, precision: Precision, check: str = "budget") -> Verdict:
    """The error of one output against its budget; raises CheckFailed when it is over, in all or in one slice."""
    check_form(expected.name, result, expected.reference)
    check_finite(result, expected)
    got, own = errors(result, expected.truth, expected.finite), expected.own
    budget = max(precision.max_nmse, precision.slack * own.nmse)
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
