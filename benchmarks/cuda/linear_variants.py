"""Every configuration of the 8-bit linears with every end of a tile: checked, then timed, by processes that may hang or crash.

Compiling is most of the work, so many workers check first and leave everything compiled; what failed there is not timed. Then one
worker at a time measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turbort_cuda import tune, variants

from benchmarks.cuda.check_inputs import Check, Pair, randn
from benchmarks.cuda.check_worker import Row, first_line
from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE, timed
from benchmarks.cuda.workers import Pool
from benchmarks.cuda.workload import DIM, FFN, TOKENS, TOY

SECONDS = 0.04
"""Device time of one measurement."""
CHECKING, TIMING, SILENCE = 75.0, 120.0, 40.0
"""Seconds for all checks, for all measurements, and without an answer before a worker counts as hung."""
SHAPES = ((DIM, DIM), (FFN, DIM), (DIM, FFN), *(() if TOY else ((5120, 5120), (13824, 5120))))
"""Outputs and inputs."""
KINDS = ("int8", "fp8")


def contests(only: str) -> list[str]:
    """Names of the contests that `only` chooses, in the order of what they decide: `linear8 1536x1536 residual`."""
    found = [_name(n, k, end, kind) for kind in KINDS for n, k in SHAPES for end in tune.ENDS]
    return [name for name in found if fnmatchcase(name, only)]


def _name(n: int, k: int, end: str, kind: str) -> str:
    return " ".join(("linear8", f"{n}x{k}", *((end,) if end != "bias" else ()), *((kind,) if kind != "int8" else ())))


def _parts(name: str) -> tuple[int, int, str, bool]:
    """Outputs, inputs, end and whether e4m3, of a contest's name."""
    _, size, *more = name.split()
    n, k = map(int, size.split("x"))
    return n, k, next((end for end in more if end in tune.ENDS), "bias"), "fp8" in more


def checks() -> Iterator[Check]:
    """Each configuration with each end at the model's width, and those in Gluon with ends of every dimension inside a tile."""
    for kind in KINDS:
        for end in tune.ENDS:
            for config in variants.linears():
                name = f"linear end {kind} {end} {variants.label(config)}"
                yield name, "bf16", partial(_checked, config, (TOKENS, DIM, DIM), end, kind == "fp8")
        for number, config in enumerate(variants.hopper_linears()):
            for end in tune.ENDS:
                for size in ((129, 1008, 1040), (16391, 1296, 1552)):
                    name = f"gluon linear {kind} {end} {'x'.join(map(str, size))} {variants.label(config)}"
                    yield name, "bf16", partial(_checked, config, size, end, kind == "fp8")
            if number == 0:
                yield f"gluon linear {kind} two videos", "bf16", partial(_videos, config, kind == "fp8")


def _checked(config: variants.Config, size: tuple[int, int, int], end: str, fp8: bool) -> Pair:
    from turbort_cuda.kernels import linear8

    m, n, k = size
    x, weight, bias = _operands(m, n, k, fp8)
    more = tune.ending(end, m, n, torch.device(DEVICE))
    return lambda: linear8.linear(x, weight, bias, config=config, **more).view(m, n), lambda: _truth(x, weight, bias, **more)


def _videos(config: variants.Config, fp8: bool) -> Pair:
    """A gate for each of two videos, whose border lies inside a tile."""
    from turbort_cuda.kernels import linear8

    from turbort.quant.qtensor import QTensor

    m, n, k = 2 * 515, 1536, 1536
    x, weight, bias = _operands(m, n, k, fp8)
    both = QTensor(x.scheme, x.values.view(2, -1, k), x.scales.view(2, -1, *x.scales.shape[1:]), x.dtype)
    residual, gate = randn(2, m // 2, n), randn(2, 1, n, dtype=torch.float32)
    return (
        lambda: linear8.linear(both, weight, bias, config=config, residual=residual, gate=gate).view(m, n),
        lambda: _truth(x, weight, bias, residual=residual, gate=gate.expand(-1, m // 2, -1)),
    )


def _operands(m: int, n: int, k: int, fp8: bool) -> tuple[Any, Any, Tensor]:
    from turbort_cuda.kernels import linear8, quant

    x = quant.quantize(randn(m, k), emit="fp8-token" if fp8 else "int8-token")
    return x, linear8.empty_weight(n, k, fp8=fp8, device=torch.device(DEVICE)), randn(n)


def _truth(
    x: Any,
    weight: Any,
    bias: Tensor,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """The true end of the product of the codes themselves: only the output's rounding is left as an error."""
    y = F.linear(x.dequantize(torch.float32), weight.values.float() * weight.scales[:, None], bias.float())
    if activation:
        y = F.gelu(y, approximate="tanh")
    if residual is None or gate is None:
        return y
    return residual.float().view(y.shape) + (gate.float() * y.view(residual.shape)).view(y.shape)


def configs(quick: bool) -> list[variants.Config]:
    """All configurations, or those that hide the end of a tile."""
    return [config for config in variants.linears() if not quick or "flatten" in config]


def run(results: Results, args: argparse.Namespace) -> None:
    """Check, then time the contests that `args.only` names; `args.quick`: fewer configurations, e4m3 at the first shape only."""
    from benchmarks.cuda.check import table, workers

    chosen = [name for name in contests(args.only) if not args.quick or not _parts(name)[3] or _parts(name)[:2] == SHAPES[0]]
    if not chosen:
        return
    kinds = {"fp8" if _parts(name)[3] else "int8" for name in chosen}
    labels = [variants.label(config) for config in configs(args.quick)]
    names = [name for name, _, _ in checks() if name.split()[2] in kinds and name.endswith((*labels, "two videos"))]
    tasks = [{"kind": "shape", "items": names[start::stride]} for stride in (len(names) // 4 + 1,) for start in range(stride)]
    checked = Pool("benchmarks.cuda.check_worker", workers(args), torch.cuda.device_count(), CHECKING, silence=SILENCE).run(tasks)
    print(table(checked), flush=True)
    good = {row["name"] for row in checked if row["verdict"] == "ok"}
    work = []
    for name in chosen:
        _, _, end, fp8 = _parts(name)
        start = f"linear end {'fp8' if fp8 else 'int8'} {end} "
        work.append({"kind": "time", "items": [f"{name}: {text}" for text in labels if start + text in good]})

    def tell(row: Row) -> None:
        results.note("tune " + row["name"], **{key: value for key, value in row.items() if key in ("ms", "tflop_s", "error")})

    found = Pool("benchmarks.cuda.check_worker", 1, 1, TIMING, tell, silence=SILENCE).run(task for task in work if task["items"])
    for name in chosen:
        rows = [row for row in found if row["name"].startswith(f"{name}: ") and row.get("ms")]
        if rows:
            best = min(rows, key=lambda row: row["ms"])
            results.note(f"tune best {best['name']}", ms=best["ms"], tflop_s=best["tflop_s"])
            if args.save:
                _keep(best)


def _keep(row: Row) -> None:
    from turbort_cuda.launch import capability
    from turbort_cuda.tuning import save

    name, _, text = row["name"].partition(": ")
    n, k, end, fp8 = _parts(name)
    if not fp8 and end != "gelu":  # one table serves both kinds, and ends without a residual are alike
        config = next(config for config in variants.linears() if variants.label(config) == text)
        save(f"sm_{capability(torch.device(DEVICE))}", "linear8", _name(n, k, end, "int8").removeprefix("linear8 "), config)


def times(items: list[str]) -> Iterator[Row]:
    """What a worker answers: milliseconds of `linear8 1536x1536 residual: M=128 ...`, all items of one contest."""
    made: tuple[str, tune.Contest] | None = None
    for item in items:
        name, _, text = item.partition(": ")
        try:
            if made is None or made[0] != name:
                n, k, end, fp8 = _parts(name)
                made = name, tune.linear((TOKENS, n, k), torch.device(DEVICE), end, fp8=fp8)
            contest = made[1]
            config = next(config for config in contest.configs if variants.label(config) == text)
            ms = timed(partial(contest.call, config), seconds=SECONDS).ms
            yield {"name": item, "verdict": "ok", "ms": ms, "tflop_s": contest.flop / ms / 1e9}
        except Exception as error:  # noqa: BLE001 - a configuration may not fit this card, and the others still count
            yield {"name": item, "verdict": "FAIL", "error": f"{type(error).__name__}: {first_line(error)}"}
