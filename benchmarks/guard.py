"""What the outlier monitor costs, and how long a promotion stalls a step.

    python -m benchmarks.guard [--model wan2.1-t2v-1.3b] [--profile h100] [--videos 20] [--out FILE]

Random weights of the model's size. A video's steps (four, as a distilled model takes) with the monitor (sampling, the batched
judgement and its transfer to the host) and as many without alternate, in the order ABBA, so that a drift of the machine counts
for both. `monitor_share` is the median of the differences over the median step, with the 5 % and 95 % points of that median over
pairs drawn anew; times of steps on a CPU are of the processor, so that a busy machine does not count. `inside_share` is the part
of a video's wall time in the monitor's own calls, median over videos (null on a device, where the host waits in them for the
step). Then single groups are promoted, one after the other: the first step with a new set of kernels, and the second, against the
median step.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda.timing import DEVICE
from benchmarks.cuda.workload import filled, registry_here
from benchmarks.machine import commit, describe_machine
from turbort.guard.groups import find_groups
from turbort.guard.monitor import Monitor, Watch, make_monitor
from turbort.guard.switch import Switchboard
from turbort.models.sites import build_dit
from turbort.models.spec import get_model
from turbort.op import slots
from turbort.planner import DTYPES, find_target, make_plan
from turbort.profile import load_profile

STEPS = 4


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = arguments()
    spec, profile, registry = get_model(args.model), load_profile(args.profile), registry_here()
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
    watched = backend.compile_switched(model, device, monitor)
    latent = spec.latent_shape(spec.defaults.width, spec.defaults.height, spec.defaults.frames)[1:]
    x = torch.randn(1, spec.dit.in_channels, *latent, device=DEVICE, dtype=dtype)
    context = model.encode_text(torch.randn(1, spec.dit.text_len, spec.dit.text_dim, device=DEVICE, dtype=dtype))
    given = (x, torch.full((1,), 900.0, device=DEVICE), context)

    monitor.in_turns = watched is model
    inside = Inside(monitor)

    def step() -> None:
        monitor.before()
        watched(*given)
        monitor.after()

    def guarded() -> None:
        monitor.begin()
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        inside.next(time.perf_counter() - start)

    def unguarded() -> None:
        for _ in range(STEPS):
            plain(*given)

    clock = time.process_time if DEVICE == "cpu" else time.perf_counter

    def timed(call: Callable[[], Any]) -> float:
        backend.synchronize(device)
        start = clock()
        call()
        backend.synchronize(device)
        return 1000 * (clock() - start)

    for call in (guarded, unguarded) * 2:
        timed(call)
    pairs = []
    for number in range(args.videos):
        turn = [unguarded, guarded]
        times = [timed(call) / STEPS for call in (turn if number % 2 == 0 else turn[::-1])]
        pairs.append((times[0], times[1]) if number % 2 == 0 else (times[1], times[0]))

    def judge() -> None:
        assert monitor.probes is not None
        monitor.probes.listening = None  # as after a step that was sampled
        monitor.after()

    judging = [timed(judge) for _ in range(args.videos)]
    without, with_monitor = (statistics.median(column) for column in zip(*pairs, strict=True))
    stalls, settled = [], []
    for group in groups[:5]:
        board.set(frozenset({group.name}))
        stalls.append(timed(step))
        settled.append(timed(step))
    board.set(frozenset())
    differences = [b - a for a, b in pairs]
    found = {
        "device": device.name,
        "model": args.model,
        "groups": len(groups),
        "pairs": len(pairs),
        "step_ms": round(without, 3),
        "monitored_step_ms": round(with_monitor, 3),
        "monitor_share": round(statistics.median(differences) / without, 5),
        "monitor_share_5_95": [round(value / without, 5) for value in medians(differences)],
        "inside_share": round(statistics.median(inside.shares[2:]), 5) if DEVICE == "cpu" else None,
        "judging_ms": round(statistics.median(judging), 3),
        "first_step_after_promotion_ms": [round(value, 3) for value in stalls],
        "second_step_after_promotion_ms": [round(value, 3) for value in settled],
        "longest_stall_in_steps": round((max(stalls) - without) / without, 3),
    }
    print(json.dumps(found, indent=2))
    if args.out:
        document = {"benchmark": "guard", "commit": commit(), "machine": describe_machine(), **found}
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


class Inside:
    """Adds up the time in a monitor's own calls: the copies of rows, and what happens before and after a step."""

    def __init__(self, monitor: Monitor) -> None:
        self.seconds = 0.0
        self.shares: list[float] = []
        assert monitor.probes is not None
        for owner, name in ((monitor.probes, "take"), (monitor, "before"), (monitor, "after")):
            setattr(owner, name, self._timed(getattr(owner, name)))

    def next(self, wall: float) -> None:
        """One more video, which took `wall` seconds."""
        self.shares.append(self.seconds / wall)
        self.seconds = 0.0

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def medians(values: list[float], draws: int = 1000) -> tuple[float, float]:
    """The 5 % and 95 % points of the median over samples drawn anew."""
    draw = random.Random(0)
    found = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(draws))
    return found[draws // 20], found[-draws // 20]


if __name__ == "__main__":
    main()
