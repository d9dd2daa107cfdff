"""Inputs made so that one kind of mistake cannot hide in the mean: weights column by column, attention to one key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from turbort.testing.compare import CheckFailed, Expected, Measure, as_float64, judge
from turbort.testing.oracle import Inputs
from turbort.testing.trial import Refused, Trial
from turbort.testing.truth import truth
from turbort.testing.values import leaves

ROUNDING: Mapping[torch.dtype, float] = {torch.bfloat16: 1e-5, torch.float16: 1e-6, torch.float32: 1e-9}
"""nmse that rounding the output alone may cause, with a margin of about five."""

SPAN = 16


def one_hot(trial: Trial) -> None:
    """Rows with a single -1 read single columns of the weight, which every 8-bit scheme represents exactly.

    Finds dropped tails of K or N, transposed or shuffled packing and wrong scales at any weight precision,
    where the budget of a four-bit weight would hide them. (-1 because block128 saturates +1 at 127/128.)
    """
    weight = trial.inputs.weights.get("weight", trial.inputs.logical["weight"])
    columns = _some(weight.shape[1])
    x = torch.zeros(1, len(columns), weight.shape[1], dtype=trial.variant.dtype)
    x[0, range(len(columns)), columns] = -1.0
    inputs = Inputs({"x": x, "weight": trial.inputs.logical["weight"]}, trial.inputs.weights)
    exact = -as_float64(weight)[:, columns].T.unsqueeze(0)
    floor = replace(trial.case.precision, max_nmse=ROUNDING[trial.variant.dtype])
    expected = Expected.of("output for single columns of the weight", trial.oracle.reference(trial.case, inputs), exact)
    output = _run(trial, inputs)
    if output is not None:
        judge(output, expected, floor, "one-hot")


def peaked_attention(trial: Trial) -> None:
    """Each query equals one random key, so the result is nearly that key's value and far from the mean of v."""
    given = dict(trial.inputs.logical)
    q, k = given["q"], given["k"]
    generator = torch.Generator().manual_seed(q.shape[1])
    keys = torch.randn(k.shape, generator=generator, dtype=torch.float32)
    chosen = torch.randint(k.shape[1], (q.shape[1],), generator=generator)
    # |k|^2 / sqrt(d) is about sqrt(d): for short heads the queries are scaled so that the peak stays.
    scale = max(1.0, 12.0 / k.shape[-1] ** 0.5)
    given |= {"q": (keys[:, chosen] * scale).to(q.dtype), "k": keys.to(k.dtype)}
    if "proj_weight" in given:
        # All blocks and no linear branch: sparse-linear attention is then dense attention.
        given |= {
            "topk": 1.0,
            "proj_weight": torch.zeros_like(given["proj_weight"]),
            "proj_bias": torch.zeros_like(given["proj_bias"]),
        }
    inputs = Inputs(given)
    output = _run(trial, inputs)
    if output is None:
        return
    uniform = as_float64(given["v"]).mean(1, keepdim=True).expand(q.shape)
    if k.shape[1] > 1 and Measure(uniform).errors(output).nmse < 0.05:
        raise CheckFailed("peaked", "the result is the mean of v whatever q and k are")
    expected = Expected.of(
        "output for peaked attention", trial.oracle.reference(trial.case, inputs), truth(trial.case.spec, given)[0]
    )
    judge(output, expected, trial.case.precision, "peaked")


def _run(trial: Trial, inputs: Inputs) -> Any:
    """The kernel's single output, or None when it refuses this call."""
    try:
        trial.ask(inputs.call(trial.case.spec.name))
    except Refused:
        return None
    found = leaves(trial.call(trial.arguments(inputs)))
    return found[0][1]


def _some(count: int) -> list[int]:
    """The first, the last and some evenly spaced indices below `count`."""
    spaced = range(0, count, max(1, count // SPAN))
    return sorted({*range(min(SPAN, count)), *range(max(0, count - SPAN), count), *spaced})


PROBES: Mapping[str, tuple[Callable[[Trial], None], ...]] = {
    "linear": (one_hot,),
    "attention": (peaked_attention,),
    "sla_attention": (peaked_attention,),
}
