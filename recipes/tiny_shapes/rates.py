"""Trying learning rates before a run: a rate that diverges costs seconds this way instead of a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.common import Run
from recipes.tiny_shapes.optim import Optimisers, schedule

Rates = tuple[float, float]  # peaks of (Muon, AdamW)


def try_rates(
    run: Run, model: nn.Module, choices: Sequence[Rates], build: Callable[[Rates], Optimisers],
    step: Callable[[Optimisers, float], Tensor], steps: int,
) -> Rates:  # fmt: skip
    """Train with each choice for `steps` steps from the same weights; returns the best and leaves its weights in `model`.

    A single choice is returned as it is.

    `step(optimisers, rate)` makes an update and returns the loss. Each try has a whole schedule of its own; the best has the
    least mean loss over its last third.
    """
    parallel.broadcast(model.state_dict().values())
    if len(choices) == 1:
        return choices[0]
    start = {k: v.clone() for k, v in model.state_dict().items()}
    best, kept, least = choices[0], start, float("inf")
    for rates in choices:
        model.load_state_dict(start)
        opt = build(rates)
        losses = [step(opt, schedule(i, i / steps, warmup=max(1, steps // 4), hold=0.4)).detach() for i in range(steps)]
        late = torch.stack(losses[-max(1, steps // 3) :]).mean()
        parallel.average([late])
        run.say(f"rates {rates}: loss {float(late):.4f} after {steps} steps")
        if float(late) < least:
            best, least = rates, float(late)
            kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    return best
