"""Configurations of linears, attention and the VAE's convolutions against each other; `--save` keeps the best for this card."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase

import torch
from turbort_cuda import tune
from turbort_cuda.launch import capability
from turbort_cuda.variants import label

from benchmarks.cuda import linear_variants
from benchmarks.cuda.convolution import STAGES
from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE, timed
from benchmarks.cuda.workload import DIM, FFN, HEAD, HEADS, TOKENS, TOY

SECONDS = 0.06


def run(results: Results, args: argparse.Namespace) -> None:
    arch = f"sm_{capability(torch.device(DEVICE))}" if args.save else None
    if not TOY:
        linear_variants.run(results, args)
    sizes = {(TOKENS, n, k) for n, k in ((FFN, DIM), (DIM, FFN), (DIM, DIM))} if TOY else set()
    for contest in tune.contests(sizes, {(TOKENS, HEADS, HEAD)}, torch.device(DEVICE), () if TOY else STAGES[1:]):
        if not fnmatchcase(f"{contest.kernel} {contest.key}", args.only):
            continue
        title = f"tune {contest.kernel} {contest.key}"
        trials = tune.run(contest, arch=arch, clock=lambda call: timed(call, seconds=SECONDS).ms)
        for number, trial in enumerate(trials):
            name = f"{title} best" if number == len(contest.configs) else f"{title} {label(trial.config)}"
            if trial.ms is None:
                results.note(name, error=trial.problem)
            else:
                results.note(name, ms=trial.ms, tflop_s=contest.flop / trial.ms / 1e9, config=trial.config)
