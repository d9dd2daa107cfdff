"""Inputs, truths and reference results of cases, kept while neighbouring cases need the same ones."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from turbort.kernel import Call
from turbort.quant.bsq import block_sparsify
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize
from turbort.testing.case import Case, Variant
from turbort.testing.compare import Expected
from turbort.testing.truth import truth
from turbort.testing.values import leaves, spec_of

DENSITY = 0.3
"""Share of tiles that survive in the block-sparse weights of the suite."""

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """Arguments of one case on the CPU: floats as the sample made them, and the quantised weights by name."""

    logical: dict[str, Any]
    weights: dict[str, QTensor] = field(default_factory=dict)

    def call(self, op: str) -> Call:
        """The call as the planner records it: logical shapes, nothing quantised."""
        return Call(op, "conformance", "conformance", {name: spec_of(value) for name, value in self.logical.items()})


class Oracle:
    """Answers what a case is given and what it must return; remembers the last few answers."""

    def __init__(self, remember: int = 24) -> None:
        self._remember = remember
        self._known: OrderedDict[Hashable, Any] = OrderedDict()

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._known:
            self._known[key] = make()
            while len(self._known) > self._remember:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        found: T = self._known[key]
        return found

    def inputs(self, case: Case, variant: Variant, seed: int = 0) -> Inputs:
        """The sample's arguments; the same on every machine for the same case and seed."""
        scheme = case.precision.weight_scheme
        return self._once(("inputs", _site(case, variant), scheme, seed), lambda: _make(case, variant, seed))

    def truth(self, case: Case, variant: Variant) -> list[Tensor]:
        """The outputs in fp64, with nothing quantised."""
        return self._once(("truth", _site(case, variant)), lambda: truth(case.spec, self.inputs(case, variant).logical))

    def expect(self, case: Case, variant: Variant, emit: str | None = None) -> list[Expected]:
        """Per output: the reference at the case's precision, the truth, and the error between the two."""
        return self._once(("expect", _site(case, variant), case.precision.name, emit), lambda: self._expect(case, variant, emit))

    def _expect(self, case: Case, variant: Variant, emit: str | None) -> list[Expected]:
        found = leaves(self.reference(case, self.inputs(case, variant), emit))
        exact = self.truth(case, variant)
        return [Expected.of(name, leaf, value) for (name, leaf), value in zip(found, exact, strict=True)]

    def reference(self, case: Case, inputs: Inputs, emit: str | None = None) -> Any:
        """What the op's reference returns at the case's precision."""
        arguments = {**inputs.logical, **inputs.weights}
        if inputs.weights and case.precision.emit:
            # An int4 weight alone does not say whether activations have 8 or 16 bits; quantised tokens do.
            arguments["x"] = quantize(arguments["x"], case.precision.emit)
        return self.reference_on(case, arguments, emit)

    def reference_on(self, case: Case, arguments: Mapping[str, Any], emit: str | None) -> Any:
        """The reference called with these very arguments."""
        with torch.no_grad():
            return case.spec.reference(**arguments, **selectors(case, emit))


def selectors(case: Case, emit: str | None) -> dict[str, str]:
    """`precision=` and `emit=`, where the op has them and they are not at their default."""
    chosen: dict[str, str] = {}
    if case.spec.takes_precision and case.precision.kind != "float":
        chosen["precision"] = case.precision.name
    if emit is not None:
        chosen["emit"] = emit
    return chosen


def _site(case: Case, variant: Variant) -> Hashable:
    """What decides the float inputs, and so the truth."""
    return case.spec.name, case.sample.id, variant.dtype, variant.tile if case.sparse_weights else 0


def _make(case: Case, variant: Variant, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.spec.name}/{case.sample.id}/{seed}".encode()))
    logical = case.sample.make(generator, variant.dtype, torch.device("cpu"))
    scheme = case.precision.weight_scheme
    weights: dict[str, QTensor] = {}
    for name in case.spec.weights if scheme else ():
        if case.sparse_weights:
            logical[name] = block_sparsify(logical[name], variant.tile, DENSITY)
        weights[name] = quantize(logical[name].to(torch.float32), str(scheme), tile=variant.tile)
    return Inputs(logical, weights)
