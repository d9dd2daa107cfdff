"""Time and bytes per call site while a video is made: `turbort run --profile-ops`.

Every call is timed with the device synchronised at both ends, so steps run site by site and not as a compiled program: shares
are meaningful, totals are upper bounds.

* Quantising is timed once per site, on live arguments: for an input that the linear must quantise itself, the time of
  `quantize` on it; for a producer that hands over codes, its time less its time without. Dequantising happens on the sums
  inside a kernel and cannot be told apart there.
* Bytes moved are those of arguments, weights and results, plus codes that are written and read again where quantising is not
  fused. The minimum counts each input once, in the width of its site's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from turbort.backend import Backend, Device
from turbort.op import Slot, slots
from turbort.ops.linear import ACTIVATION_SCHEME
from turbort.precision import PRECISIONS, SUMS
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

ATTENTION = ("attention", "sla_attention")
MEMORY_SAMPLES = 400


@dataclass
class SiteTime:
    """What one call site took: seconds in all and in quantising, bytes moved and needed."""

    stage: str
    path: str
    op: str
    role: str
    precision: str = ""
    provider: str = ""
    calls: int = 0
    seconds: float = 0.0
    quantise: float = 0.0
    moved: int = 0
    needed: int = 0
    per_call: float | None = field(default=None, repr=False)


class OpProfile:
    """Collects times of all sites of the models it is attached to, and a trace of every call."""

    def __init__(self, backend: Backend, device: Device) -> None:
        self.backend, self.device = backend, device
        self.sites: dict[tuple[str, str], SiteTime] = {}
        self.trace: list[dict[str, Any]] = []
        self.memory: list[tuple[float, int]] = []
        self._start = perf_counter()

    def attach(self, model: nn.Module, stage: str) -> None:
        """Time every call site of a bound model from now on."""
        for path, slot in slots(model).items():
            site = self.sites.setdefault((stage, path), SiteTime(stage, path, slot.op.name, slot.role))
            slot.around = self._around(site)

    def _around(self, site: SiteTime) -> Callable[[Slot, tuple[Any, ...], dict[str, Any]], Any]:
        def call(slot: Slot, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            site.precision, site.provider = slot.precision or "unplanned", slot.provider
            with self._range(f"{site.stage}/{site.path} {site.precision}"):
                start, seconds, result = self._timed(lambda: slot.fn(*args, **kwargs))
            if site.per_call is None:
                site.per_call = self._quantising(slot, args, kwargs, seconds)
            site.calls += 1
            site.seconds += seconds
            site.quantise += min(site.per_call, seconds)
            self._bytes(site, args, kwargs, result)
            self._note(site, start, seconds)
            return result

        return call

    def _timed(self, call: Callable[[], Any]) -> tuple[float, float, Any]:
        self.backend.synchronize(self.device)
        start = perf_counter()
        result = call()
        self.backend.synchronize(self.device)
        return start, perf_counter() - start, result

    def _quantising(self, slot: Slot, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> float:
        """Seconds of one call that go into making codes."""
        bound = slot.fn
        if isinstance(bound, partial) and bound.keywords.get("emit") in SUMS:
            return 0.0
        if isinstance(bound, partial) and bound.keywords.get("emit"):
            rest = {key: value for key, value in bound.keywords.items() if key != "emit"}
            plain = partial(bound.func, **rest)
            best = min(self._timed(lambda: plain(*args, **kwargs))[1] for _ in range(2))
            return max(0.0, min(seconds, self._timed(lambda: bound(*args, **kwargs))[1]) - best)
        scheme = _scheme(slot, args)
        if scheme is None:
            return 0.0
        return min(self._timed(lambda: quantize(args[0], scheme))[1] for _ in range(2))

    def _bytes(self, site: SiteTime, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        first = _size(args[:1])
        rest = _size(args[1:]) + _size(kwargs.values()) + _size([result])
        bits = PRECISIONS[site.precision].activation_bits if site.precision in PRECISIONS else 16
        wide = site.op == "linear" and args and isinstance(args[0], Tensor) and bits < 16
        codes = args[0].numel() * bits // 8 if wide else 0
        site.moved += first + rest + 2 * codes
        site.needed += (codes or first) + rest

    def _note(self, site: SiteTime, start: float, seconds: float) -> None:
        at = start - self._start
        self.trace.append(
            {
                "name": f"{site.op} {site.precision}",
                "cat": site.stage,
                "ph": "X",
                "ts": round(1e6 * at, 1),
                "dur": round(1e6 * seconds, 1),
                "pid": 0,
                "tid": 0,
                "args": {"site": site.path, "kernel": site.provider},
            }
        )
        used = self.backend.memory(self.device).used
        if used is not None:
            self.memory.append((round(at, 4), used))

    def _range(self, name: str) -> AbstractContextManager[Any]:
        """An NVTX range for Nsight, on devices that have them."""
        if not self.device.torch_name.startswith("cuda"):
            return nullcontext()
        import torch

        return torch.cuda.nvtx.range(name)

    def chrome_trace(self) -> dict[str, Any]:
        """The calls as a trace that chrome://tracing and Perfetto read."""
        return {"traceEvents": self.trace, "displayTimeUnit": "ms"}

    def as_data(self, budget: float) -> dict[str, Any]:
        """Per op and precision and in all, with shares of the transformer's time; `budget` is the profile's for quantising."""
        dit = [site for site in self.sites.values() if site.stage == "dit" and site.calls]
        step = sum(site.seconds for site in dit) or 1.0
        rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        for site in self.sites.values():
            if site.calls:
                key = (site.stage, site.op, site.precision)
                empty = {"calls": 0, "seconds": 0.0, "quantise": 0.0, "moved": 0, "needed": 0}
                row = rows.setdefault(key, {"stage": key[0], "op": key[1], "precision": key[2], **empty})
                for name in empty:
                    row[name] += getattr(site, name)
        share = sum(site.quantise for site in dit) / step
        every = max(1, len(self.memory) // MEMORY_SAMPLES)
        return {
            "ops": sorted((_shared(row, step) for row in rows.values()), key=lambda row: -row["seconds"]),
            "transformer_seconds": round(step, 5),
            "quantise_share": round(share, 4),
            "quantise_budget": budget,
            "within_budget": share <= budget,
            "attention_share": round(sum(site.seconds for site in dit if site.op in ATTENTION) / step, 4),
            "bytes_moved": sum(site.moved for site in dit),
            "bytes_needed": sum(site.needed for site in dit),
            "memory": [list(pair) for pair in self.memory[::every]],
        }


def _shared(row: dict[str, Any], step: float) -> dict[str, Any]:
    share = round(row["seconds"] / step, 4) if row["stage"] == "dit" else None
    quantise = round(row["quantise"] / step, 4) if row["stage"] == "dit" else None
    seconds = {"seconds": round(row["seconds"], 5), "quantise": round(row["quantise"], 5)}
    return {**row, **seconds, "share": share, "quantise_share": quantise}


def _scheme(slot: Slot, args: tuple[Any, ...]) -> str | None:
    """The scheme into which a linear must quantise its plain input; None where there is nothing to do."""
    precision = PRECISIONS.get(slot.precision or "")
    if precision is None or precision.kind != "linear" or not args or isinstance(args[0], QTensor):
        return None
    return precision.emit and ACTIVATION_SCHEME.get(precision.weight_scheme or "", precision.emit)


def _size(values: Iterable[Any]) -> int:
    """Bytes of tensors, also inside QTensors and packed weights."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, QTensor):
            total += _size((value.values, value.scales))
        elif isinstance(value, (tuple, list)):
            total += _size(value)
        elif hasattr(value, "__dict__"):
            total += _size(vars(value).values())
    return total
