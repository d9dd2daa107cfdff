"""Timing the kernels that a plan may choose from, on the device itself, into the table that the planner reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from turbort.bind import bound_function
from turbort.kernel import Call, Kernel, TensorSpec
from turbort.kernel_times import Key, quantise_shape, shape_class
from turbort.op import OpSpec
from turbort.plan import Choice
from turbort.planner import DTYPES, Planner
from turbort.precision import PRECISIONS
from turbort.quant.schemes import quantize

SECONDS = 0.15
"""Spent on each kernel after a warm-up; the least of at least `TURNS` turns counts, because what disturbs only adds."""
TURNS = 5

Told = Callable[[int, int, str], None]


def measure(planner: Planner, sites: Sequence[Sequence[Call]], told: Told = lambda done, total, what: None) -> dict[Key, float]:
    """Milliseconds of every kernel that `planner` could give to these sites, one row per shape class and precision."""
    work = list(_distinct(planner, sites))
    device = planner.target.device
    rows: dict[Key, float] = {}
    for number, (call, precision, kernel) in enumerate(work):
        key = (device.backend, device.arch, call.op, precision, shape_class(call))
        told(number, len(work), f"{call.op} {precision} {key[-1]}")
        rows[key] = _timed(planner, call, precision, kernel)
        scheme = PRECISIONS[precision].emit
        shape = quantise_shape(call) if scheme else ""
        key = (device.backend, device.arch, "quantize", scheme or "", shape)
        if scheme and key not in rows:
            rows[key] = _least(planner, partial(quantize, _tensor(planner, call["x"]), scheme))
    return rows


def _distinct(planner: Planner, sites: Sequence[Sequence[Call]]) -> Iterator[tuple[Call, str, Kernel]]:
    """One call per shape class and precision, with the kernel that the planner would take."""
    seen = set()
    for calls in sites:
        for precision in planner.candidates(calls[0]):
            key = (calls[0].op, precision, shape_class(calls[0]))
            kernel = None if key in seen else planner.kernel(calls, precision)
            if kernel is not None:
                seen.add(key)
                yield calls[0], precision, kernel


def _timed(planner: Planner, call: Call, precision: str, kernel: Kernel) -> float:
    from turbort import ops

    op: OpSpec = getattr(ops, call.op)
    backend = planner.target.backend
    choice = Choice(call.path, call.op, call.role, precision, f"{backend}/{kernel.name}")
    function = bound_function(choice, kernel, op)
    given = {name: _tensor(planner, value) if isinstance(value, TensorSpec) else value for name, value in call.args.items()}
    if call.op == "linear":
        given |= _operands(planner, given, precision, kernel)
    return _least(planner, lambda: function(**given))


def _operands(planner: Planner, given: Mapping[str, Any], precision: str, kernel: Kernel) -> dict[str, Any]:
    """x and the weight as the kernel gets them in a fused plan."""
    named = PRECISIONS[precision]
    weight: Any = given["weight"]
    if named.weight_scheme:
        weight = quantize(weight.to(torch.float32), named.weight_scheme)
    else:
        weight = weight.to(getattr(torch, DTYPES[precision]))
    pack = kernel.load_pack()
    x = given["x"]
    return {"x": quantize(x, named.emit) if named.emit else x, "weight": pack(weight) if pack else weight}


def _tensor(planner: Planner, spec: TensorSpec) -> Tensor:
    """Random values of that shape and dtype on the device."""
    generator = torch.Generator().manual_seed(prod(spec.shape) % 2**31)
    values = torch.randn(spec.shape, generator=generator)
    return values.to(planner.target.device.torch_name, getattr(torch, spec.dtype))


@torch.inference_mode()
def _least(planner: Planner, call: Callable[[], Any]) -> float:
    """Milliseconds of the fastest turn; short calls run many times a turn."""
    backend, device = planner.registry.backend(planner.target.backend), planner.target.device

    def turn(repeats: int) -> float:
        backend.synchronize(device)
        start = perf_counter()
        for _ in range(repeats):
            call()
        backend.synchronize(device)
        return (perf_counter() - start) / repeats

    once = min(turn(1), turn(1))
    repeats = max(1, int(SECONDS / TURNS / max(once, 1e-7)))
    return 1e3 * min(turn(repeats) for _ in range(TURNS))
