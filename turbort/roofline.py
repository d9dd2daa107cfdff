"""How long a call would take on a device, from the device's published figures. No torch here.

    seconds = max(operations / rate of the product's format, bytes moved / bandwidth) + launch

Rates are dense peaks times the share of them that good kernels reach. A roofline orders choices; it is not a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod

from turbort.kernel import Call, TensorSpec
from turbort.precision import PRECISIONS, Precision

TERA = 1e12
WIDTHS: Mapping[str, float] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "float8_e4m3fn": 1}
_FORMATS: Mapping[str, str] = {"fp8": "fp8", "int8-fp8": "fp8", "w4a16": "half"}
"""Format of the product where it is not int8."""
_REACHED: Mapping[str, float] = {"single": 0.7, "half": 0.7, "int8": 0.55, "fp8": 0.6}


@dataclass(frozen=True)
class Figures:
    """One device: operations per second by product format (`single`, `half`, `int8`, `fp8`), bandwidth in bytes per second.

    `reached` is the share of the peak that kernels get; `launch` the seconds that one more kernel costs in a captured step.
    """

    arch: str
    rates: Mapping[str, float]
    bandwidth: float
    launch: float = 2e-6
    reached: Mapping[str, float] = field(default_factory=lambda: _REACHED)

    def rate(self, kind: str) -> float:
        """Operations per second for a format; what the device lacks runs as 16-bit products."""
        name = kind if kind in self.rates else "half"
        return self.rates[name] * self.reached[name]


def _chip(arch: str, half: float, int8: float, bandwidth: float, *, fp8: float = 0.0, single: float = 0.0) -> Figures:
    """Rates in tera-operations per second, bandwidth in TB/s."""
    rates = {"half": half, "int8": int8, "single": single or half / 2, **({"fp8": fp8} if fp8 else {})}
    return Figures(arch, {name: value * TERA for name, value in rates.items()}, bandwidth * TERA)


# Dense peaks. Sources: the vendors' documents named in the profiles of these devices (profiles/*.yaml). Where one architecture
# has several cards, the figures are those of the largest; ratios between formats, which decide, are alike.
# Shares reached are those measured on an H100 SXM at the model's sizes: bf16 660-716 TFLOP/s, int8 989-1158 TOP/s, fp8 1197-1306.
# Ascend910: 313 TFLOPS FP16 of the Atlas 800I A2; the INT8 rate is taken as twice that, as for the vendor's other chips.
# x86_64: one core of an AMD EPYC with AVX-512 VNNI (benchmarks/results/cpu_kernels.json, 576x256x1024, oneDNN).
DEVICES: Sequence[Figures] = (
    _chip("sm_80", 312, 624, 2.039, single=156),
    _chip("sm_8[67]", 71, 284, 0.936),
    _chip("sm_89", 165, 661, 1.008, fp8=330),
    _chip("sm_90", 989, 1979, 3.35, fp8=1979, single=494),
    _chip("sm_10*", 2250, 4500, 8.0, fp8=4500),
    _chip("sm_12*", 209, 838, 1.792, fp8=419),
    _chip("Ascend910*", 313, 626, 1.6),
    _chip("Ascend310P*", 70, 140, 0.204),
    _chip("Ascend950*", 500, 1000, 1.6, fp8=1000),
    _chip("v4", 275, 275, 1.2),
    _chip("v5e", 197, 393, 0.819),
    _chip("v5p", 459, 918, 2.765),
    _chip("v6e", 918, 1836, 1.6, fp8=918),
    _chip("tpu7x", 2307, 2307, 7.37, fp8=4614),
    Figures("x86_64", {"single": 0.18e12, "half": 0.33e12, "int8": 0.5e12}, 10e9, 5e-6, dict.fromkeys(_REACHED, 1.0)),
)


def figures_for(arch: str, others: Sequence[str] = ()) -> Figures | None:
    """The figures of an architecture, or of the first of `others` (globs of a profile) that is known; None when none is."""
    for wanted in (arch, *others):
        for row in DEVICES:
            if fnmatchcase(wanted, row.arch) or fnmatchcase(row.arch, wanted):
                return row
    return None


def seconds(call: Call, precision: str, figures: Figures, *, compute: str = "bf16", density: float = 1.0) -> float:
    """One call of a linear (x in the precision's own format) or an attention; other ops are passes over their tensors.

    `density` is the share of a block-sparse weight that is multiplied.
    """
    named = PRECISIONS[precision]
    if call.op == "linear":
        return _linear(call, named, figures, compute, density)
    if call.op in ("attention", "sla_attention"):
        return _attention(call, named, figures, compute)
    moved = sum(_bytes(value, compute) for value in call.args.values())
    return 2 * moved / figures.bandwidth + figures.launch


def quantising(call: Call, figures: Figures, compute: str) -> float:
    """A pass of its own that reads x and writes 8-bit codes."""
    x = call["x"]
    return float(prod(x.shape) * (_width(compute) + 1) / figures.bandwidth + figures.launch)


def weight_bytes(call: Call, precision: str, density: float = 1.0) -> float:
    """Bytes of a linear's weight with its scales."""
    weight, named = call["weight"], PRECISIONS[precision]
    if not isinstance(weight, TensorSpec):
        return 0.0
    count = prod(weight.shape)
    if named.kind == "float":
        return count * (4.0 if precision == "fp32" else 2.0)
    scales = {"bsq8": count / 64, "bsq4": count / 64, "int4-group128": count / 128}.get(str(named.weight_scheme), weight.shape[0])
    return density * count * named.weight_bits / 8 + 4.0 * scales


def _linear(call: Call, named: Precision, figures: Figures, compute: str, density: float) -> float:
    x, weight = call["x"], call["weight"]
    rows, outputs = prod(x.shape[:-1]), weight.shape[0]
    width = _width(compute)
    operations = 2.0 * rows * prod(weight.shape) * density
    into = prod(x.shape) * (1 if named.emit else width)
    moved = into + weight_bytes(call, named.name, density) + rows * outputs * width * (1 if call["residual"] is None else 2)
    return float(max(operations / figures.rate(_format(named, compute)), moved / figures.bandwidth) + figures.launch)


def _attention(call: Call, named: Precision, figures: Figures, compute: str) -> float:
    q, k = call["q"], call["k"]
    batch, length, heads, width = q.shape
    keys = k.shape[1] * (call["topk"] or 1.0)
    product = 2.0 * batch * heads * length * keys * width
    scores = figures.rate("int8" if named.kind == "attention" else _format(named, compute))
    values = figures.rate("fp8" if named.name == "int8-fp8" else _format(PRECISIONS[compute], compute))
    moved = 4 * prod(q.shape) * _width(compute)
    # Quantising q, k (and v) reads what the kernel would read anyway and writes a byte a value.
    extra = (2 if named.name == "int8" else 3) * prod(q.shape) * 2 if named.kind == "attention" else 0
    return float(max(product / scores + product / values, (moved + extra) / figures.bandwidth) + figures.launch)


def _format(named: Precision, compute: str) -> str:
    if named.kind == "float":
        return "single" if named.name == "fp32" else "half"
    kind = _FORMATS.get(named.name, "int8")
    return "single" if kind == "half" and compute == "fp32" else kind


def _width(precision: str) -> int:
    return 4 if precision == "fp32" else 2


def _bytes(value: object, compute: str) -> float:
    return prod(value.shape) * WIDTHS.get(value.dtype, _width(compute)) if isinstance(value, TensorSpec) else 0.0
