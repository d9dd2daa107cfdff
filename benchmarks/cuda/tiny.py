"""The embedded model on the GPU with the profile picked for it: how often it is right, beside the CPU, and how long it takes.

The oracle of `recipes/tiny_shapes` judges clips of held-out captions; `--cpu` makes the same clips on the CPU, too.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np

from benchmarks.cuda.results import Results

SEED = 1
"""As in recipes/tiny_shapes/evaluate.py, so that captions and noise are the same."""


def run(results: Results, args: argparse.Namespace) -> None:
    scores = [_scored(results, None, args.captions)]
    if args.cpu:
        scores.append(_scored(results, "cpu", args.captions))
        results.note("GPU minus CPU, share right", points=100 * (scores[0]["right"] - scores[1]["right"]))


def _scored(results: Results, on: str | None, count: int) -> dict[str, Any]:
    from recipes.tiny_shapes.scene import held_out_scenes
    from recipes.tiny_shapes.scoring import captions_for, judge_all, summary
    from turbort.cli.choose import choose
    from turbort.job import Job
    from turbort.models.spec import get_model
    from turbort.registry import Registry
    from turbort.session import Session

    if "cuda" not in Registry().backends:
        os.environ["TURBORT_PLUGINS"] = "turbort_cuda"
    found = choose(None, on)
    scenes = held_out_scenes(count, SEED)
    jobs = [Job(text, seed=1000 * SEED + i) for i, text in enumerate(captions_for(scenes, SEED + 1))]
    started = time.perf_counter()
    spec = get_model("tiny")
    with Session.open(spec, found.profile, registry=found.registry, on=on, jobs=jobs[: found.profile.batch.most]) as session:
        opened = time.perf_counter()
        frames = [result.frames for result in session.generate(jobs)]
        done = time.perf_counter()
    score = summary(judge_all(np.stack(frames), scenes))
    results.note(
        f"tiny on {found.target.device.name}",
        profile=found.profile.name,
        open_s=opened - started,
        all_s=done - opened,  # with what the first call compiles
        per_clip_s=(done - opened) / count,
        **score,
    )
    return score
