"""Precisions: named numeric contracts, each with the error a kernel may make. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["float", "linear", "attention"]


@dataclass(frozen=True, slots=True)
class Precision:
    """A named numeric contract: how values are stored, at what granularity, and how far a kernel may stray.

    A kernel passes when `nmse(kernel) <= max(max_nmse, slack * nmse(reference at this precision))`, both
    against the fp64 result of the unquantised reference, where `nmse(y) = sum((y - r)^2) / sum(r^2)`.

    Attributes:
        name: the word used in profiles, plans, reports and case ids.
        kind: `float` (every op), `linear` (weight matmuls) or `attention`.
        weight_bits, activation_bits: storage per value; 16 means the compute dtype.
        weight_scheme: the `QTensor.scheme` that weights are stored in, or None.
        emit: the `QTensor.scheme` in which a producer may hand over its output so that the consumer
            need not quantise it again, or None.
        max_nmse: the floor of the error budget (dimensionless, squared relative error).
        slack: the multiple of the reference's own error that is allowed.
    """

    name: str
    kind: Kind
    weight_bits: int
    activation_bits: int
    granularity: str
    max_nmse: float
    weight_scheme: str | None = None
    emit: str | None = None
    slack: float = 2.0

    def no_less_than(self, least: Precision) -> bool:
        """Whether this stores at least as many bits; attentions, which store alike, go by the error they are allowed."""
        if self.kind == "attention":
            return self.max_nmse <= least.max_nmse
        return (self.weight_bits, self.activation_bits) >= (least.weight_bits, least.activation_bits)


def _table(*rows: Precision) -> Mapping[str, Precision]:
    return MappingProxyType({row.name: row for row in rows})


PRECISIONS: Mapping[str, Precision] = _table(
    Precision("fp32", "float", 32, 32, "elementwise", 1e-10),
    Precision("fp16", "float", 16, 16, "elementwise", 1e-6),
    Precision("bf16", "float", 16, 16, "elementwise", 5e-5),
    Precision("w8a8", "linear", 8, 8, "weight per channel, activation per token", 4e-4, "int8-channel", "int8-token"),
    Precision("w8a8-block128", "linear", 8, 8, "weight and activation per 128x128", 1e-3, "int8-block128", "int8-block128"),
    Precision("fp8", "linear", 8, 8, "e4m3, weight per channel, activation per token", 4e-3, "fp8-channel", "fp8-token"),
    Precision("w4a8", "linear", 4, 8, "weight per 128 inputs, activation per token", 2e-2, "int4-group128", "int8-token"),
    Precision("w4a16", "linear", 4, 16, "weight per 128 inputs, activation in 16 bits", 2e-2, "int4-group128", None),
    Precision("bsq8", "linear", 8, 8, "weight per kept tile, activation per token", 4e-4, "bsq8", "int8-token"),
    Precision("bsq4", "linear", 4, 8, "weight per kept tile, activation per token", 2e-2, "bsq4", "int8-token"),
    Precision("int8", "attention", 16, 8, "smoothed QK int8 per block, PV in 16 bits", 4e-4),
    Precision("int8-fp8", "attention", 16, 8, "smoothed QK int8 per block, PV e4m3 per channel", 2e-3),
)

FLOATS = ("fp32", "fp16", "bf16")
LINEAR = tuple(p.name for p in PRECISIONS.values() if p.kind == "linear")
ATTENTION = tuple(p.name for p in PRECISIONS.values() if p.kind == "attention")
SUMS = ("sums-64", "sums-128")
"""Schemes in which values stay as they are and bring their sums over blocks of 64 or 128 tokens along: no codes, no error."""
