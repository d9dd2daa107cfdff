"""Trying the configurations of `turbort_cuda.variants` on this card, at sizes that a model has; `turbort bench` calls it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from turbort.backend import Device
from turbort.ops.block_map import chosen_blocks
from turbort.plan import Plan
from turbort_cuda import variants
from turbort_cuda.configs import conv_class, row, shape_class
from turbort_cuda.launch import capability
from turbort_cuda.tuning import save as keep

REPEATS = 12
SHARE = 0.1
"""Share of key blocks that sparse attention keeps while it is measured."""

ENDS = ("bias", "residual", "gelu")
"""What follows a linear's products: a bias alone, then gate * y + residual as after attention and the MLP, or GELU."""

Convolution = tuple[int, int, int, int, int]
"""Inputs, outputs, frames, rows, columns."""

Clock = Callable[[Callable[[], Any]], float]
"""Milliseconds of a call."""


@dataclass(frozen=True)
class Contest:
    """One kernel at one size of `flop` operations; `call` runs a configuration, and the best is kept under `kernel` and `key`.

    `shape` is the class under which its configuration ships, where that is not the key.
    """

    kernel: str
    key: str
    flop: float
    configs: tuple[variants.Config, ...]
    call: Callable[[variants.Config], Any] = field(repr=False)
    shape: str = ""


@dataclass(frozen=True)
class Trial:
    """Milliseconds of one configuration; None, with the reason, where it does not run on this card."""

    contest: Contest
    config: variants.Config
    ms: float | None
    problem: str = ""


def tune_plan(plan: Plan, device: Device) -> Iterator[dict[str, Any]]:
    """Tune what a plan runs through the kernels of `turbort_cuda.variants`, and keep the winners for this card."""
    sizes: set[tuple[int, int, int]] = set()
    attention: set[tuple[int, int, int]] = set()
    convolutions: set[Convolution] = set()
    for choice in plan:
        shapes = [tuple(map(int, text.split("x"))) for text in choice.shapes if text != "scalar"]
        if choice.kernel == "cuda/triton-int8" and choice.op == "linear":
            rows, weight = math.prod(shapes[0][:-1]), shapes[1]
            sizes |= {(rows, *weight)} if shape_class(rows) == "wide" and len(weight) == 2 else set()
        elif choice.role == "attn.self" and choice.kernel.startswith("cuda/triton-int8"):
            attention.add(shapes[0][1:4])  # type: ignore[arg-type]
        elif choice.op == "causal_conv3d" and choice.kernel.startswith("cuda/triton"):
            (_, inputs, frames, height, width), outputs = shapes[0], shapes[1][0]
            convolutions.add((inputs, outputs, frames, height, width))
    for contest in contests(sizes, attention, torch.device(device.torch_name), convolutions):
        shipped = row(contest.kernel, capability(torch.device(device.torch_name)), contest.shape or contest.key)
        trials = list(run(contest, arch=device.arch))
        if not trials or trials[-1].ms is None:
            continue
        like = [
            trial.ms for trial in trials if trial.ms and all(shipped.get(k) == v for k, v in trial.config.items() if k in shipped)
        ]
        best = trials[-1]
        yield {
            "kernel": contest.kernel,
            "key": contest.key,
            "config": dict(best.config),
            "ms": best.ms,
            "shipped_ms": like[0] if like else best.ms,
        }


def contests(
    sizes: set[tuple[int, int, int]],
    attention: set[tuple[int, int, int]],
    device: torch.device,
    convolutions: Collection[Convolution] = (),
) -> Iterator[Contest]:
    """Contests for linears (rows, outputs, inputs), self-attention (tokens, heads, width of a head) and convolutions."""
    from turbort_cuda.kernels.attention import attention as dense
    from turbort_cuda.kernels.sla import sla_attention

    for m, n, k in sorted(sizes):
        yield linear((m, n, k), device)
        if n <= k:  # no model adds a residual to a linear that widens
            yield linear((m, n, k), device, "residual")
    for tokens, heads, width in sorted(attention):
        q, k_, v = (torch.randn(1, tokens, heads, width, device=device).to(torch.bfloat16) for _ in range(3))
        proj = (torch.randn(width, width, device=device) * width**-0.5).to(torch.bfloat16)
        product = 4.0 * tokens * width * heads
        for precision in ("int8-fp8", "int8"):

            def attend(config: variants.Config, p: str = precision, given: Any = (q, k_, v)) -> Any:
                return dense(*given, precision=p, config=config)

            yield Contest("attention", f"dense-{precision}", product * tokens, tuple(variants.dense()), attend)
        for block in variants.BLOCKS:
            kept = chosen_blocks(SHARE, -(-tokens // block[1])) * block[1]

            def sparse(config: variants.Config, b: tuple[int, int] = block, given: Any = (q, k_, v, proj, proj[0])) -> Any:
                return sla_attention(*given, topk=SHARE, block=b, precision="int8-fp8", config=config)

            yield Contest("attention", f"sparse-{block[0]}x{block[1]}", product * kept, tuple(variants.sparse(block)), sparse)
    for inputs, outputs, frames, height, width in sorted(convolutions):
        yield convolution((inputs, outputs, frames, height, width), device)


def linear(size: tuple[int, int, int], device: torch.device, end: str = "bias", *, fp8: bool = False) -> Contest:
    """A contest for one w8a8 (or e4m3) linear of size (rows, outputs, inputs) with one of `ENDS`."""
    from turbort_cuda.kernels import linear8, quant

    m, n, k = size
    x = quant.quantize(torch.randn(m, k, device=device).to(torch.bfloat16), emit="fp8-token" if fp8 else "int8-token")
    weight = linear8.empty_weight(n, k, fp8=fp8, device=device)
    bias = torch.randn(n, device=device).to(torch.bfloat16)  # as every linear of the model has; it decides between tiles
    more = ending(end, m, n, device)

    def call(config: variants.Config) -> Any:
        return linear8.linear(x, weight, bias, config=config, **more)

    key = f"{n}x{k}" if end == "bias" else f"{n}x{k} {end}"
    return Contest("linear8", key, 2.0 * m * n * k, tuple(variants.linears()), call, shape_class(m))


def ending(end: str, m: int, n: int, device: torch.device) -> dict[str, Any]:
    """What a linear with m rows and n outputs is given beside its bias for one of `ENDS`."""
    if end == "gelu":
        return {"activation": "gelu_tanh"}
    if end == "residual":
        residual = torch.randn(1, m, n, device=device).to(torch.bfloat16)
        return {"residual": residual, "gate": torch.randn(1, 1, n, device=device)}
    return {}


def convolution(size: Convolution, device: torch.device) -> Contest:
    """A contest for one 3x3x3 convolution, its past included; the input is made once and has no room in front of it."""
    from turbort_cuda.kernels import conv3d

    inputs, outputs, frames, height, width = size
    seen = torch.randn(1, frames + 2, height, width, inputs, device=device).to(torch.bfloat16)
    weight = (torch.randn(outputs, inputs, 3, 3, 3, device=device) * (27 * inputs) ** -0.5).to(torch.bfloat16)
    bias = torch.randn(outputs, device=device).to(torch.bfloat16)

    def convolve(config: variants.Config) -> Any:
        return conv3d.convolved(seen, weight, bias, config)

    flop = 2.0 * 27 * inputs * outputs * frames * height * width
    return Contest("conv3d", f"{inputs}x{outputs}", flop, tuple(variants.convolutions(outputs)), convolve, conv_class(outputs))


def run(contest: Contest, *, arch: str | None = None, clock: Clock | None = None) -> Iterator[Trial]:
    """Every configuration in turn, at last the winner again; with `arch` it replaces the shipped one there on this machine."""
    clock = clock or milliseconds
    trials = []
    for config in contest.configs:
        try:
            trials.append(Trial(contest, config, clock(partial(contest.call, config))))
        except Exception as error:  # noqa: BLE001 - a configuration may not fit this card, and the others still count
            trials.append(Trial(contest, config, None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"))
        yield trials[-1]
    ran = [trial for trial in trials if trial.ms is not None]
    if not ran:
        return
    best = min(ran, key=lambda trial: trial.ms or 0.0)
    if arch:
        keep(arch, contest.kernel, contest.key, best.config)
    yield best


def milliseconds(call: Callable[[], Any]) -> float:
    """Median of single calls between CUDA events, after a warm-up that compiles."""
    for _ in range(2):
        call()
    event: Any = torch.cuda.Event
    pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(REPEATS)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(end) for start, end in pairs))
