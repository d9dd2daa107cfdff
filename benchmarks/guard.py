"""What the outlier monitor costs, and how long a promotion stalls a step.

    python -m benchmarks.guard [--model wan2.1-t2v-1.3b] [--profile h100] [--steps 20]

Random weights of the model's size. A step with the monitor (sampling, the batched judgement and its transfer to the host) and
one without alternate; medians are compared. Then single groups are promoted, one after the other: the first step with a new
set of kernels against the median step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cuda.timing import DEVICE
from benchmarks.cuda.workload import filled
from turbort.guard.groups import find_groups
from turbort.guard.monitor import Watch, make_monitor
from turbort.guard.switch import Switchboard
from turbort.models.sites import build_dit
from turbort.models.spec import get_model
from turbort.op import slots
from turbort.planner import DTYPES, find_target, make_plan
from turbort.profile import load_profile
from turbort.registry import Registry


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = arguments()
    spec, profile, registry = get_model(args.model), load_profile(args.profile), Registry()
    target = find_target(profile, registry)
    backend, device = registry.backend(target.backend), target.device
    plan = make_plan(spec, profile, registry, target=target)
    groups = find_groups(spec, profile, registry, target, plan)
    dtype = getattr(torch, DTYPES[profile.precision.compute])
    plain = backend.compile_step(filled(build_dit(spec, profile.attention), "dit", plan, registry, dtype), device)
    boards: list[Switchboard] = []

    def also(model: Any) -> Any:
        boards.append(Switchboard(groups, slots(model), registry, torch.device(DEVICE)))
        return boards[0].take

    model: Any = filled(build_dit(spec, profile.attention), "dit", plan, registry, dtype, also=also)
    board = boards[0]
    # Nothing is promoted by itself: random weights may have outliers, and that is measured apart.
    monitor = make_monitor("dit", Watch("promote", 1.0, groups), model, board, torch.device(DEVICE))
    watched = backend.compile_switched(model, device, board)
    latent = spec.latent_shape(spec.defaults.width, spec.defaults.height, spec.defaults.frames)[1:]
    x = torch.randn(1, spec.dit.in_channels, *latent, device=DEVICE, dtype=dtype)
    context = model.encode_text(torch.randn(1, spec.dit.text_len, spec.dit.text_dim, device=DEVICE, dtype=dtype))
    given = (x, torch.full((1,), 900.0, device=DEVICE), context)

    def guarded() -> None:
        monitor.before()
        watched(*given)
        monitor.after()

    def timed(call: Callable[[], Any]) -> float:
        backend.synchronize(device)
        start = time.perf_counter()
        call()
        backend.synchronize(device)
        return 1000 * (time.perf_counter() - start)

    for call in (guarded, lambda: plain(*given)) * 2:
        timed(call)
    pairs = [(timed(lambda: plain(*given)), timed(guarded)) for _ in range(args.steps)]
    judging = [timed(monitor.after) for _ in range(args.steps)]
    without, with_monitor = (statistics.median(column) for column in zip(*pairs, strict=True))
    stalls = []
    for group in groups[:5]:
        board.set(frozenset({group.name}))
        stalls.append(timed(guarded))
    board.set(frozenset())
    print(
        json.dumps(
            {
                "device": device.name,
                "model": args.model,
                "groups": len(groups),
                "step_ms": round(without, 3),
                "monitored_step_ms": round(with_monitor, 3),
                "monitor_share": round(statistics.median(b - a for a, b in pairs) / without, 5),
                "judging_ms": round(statistics.median(judging), 3),
                "first_step_after_promotion_ms": [round(value, 3) for value in stalls],
                "longest_stall_in_steps": round((max(stalls) - without) / without, 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
