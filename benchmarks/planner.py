"""The planner against uniform precisions on this machine's CPU: predicted and real, on the plane of time and error.

    OMP_NUM_THREADS=1 python -m benchmarks.planner [--model tiny] [--weights DIR | --random DIR] [--out FILE]

Calibrates the model, times every kernel that could be chosen, plans, and then runs unquantised, uniform w8a8, uniform w4a8 and
two plans: the fastest within the quality gate, and the fastest with no more predicted error than w8a8. Times of a step are of the
processor, one thread, least of all steps; errors the PSNR of the whole video against the unquantised one from the same noise.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import commit, describe_machine
from turbort.assign import Problem
from turbort.calibrate.run import Subject, calibrate
from turbort.costs import Costs
from turbort.job import Job
from turbort.kernel_times import KernelTimes
from turbort.measure import measure
from turbort.models.spec import ModelSpec, get_model
from turbort.pareto import pareto
from turbort.plan import Plan
from turbort.planner import Planner, find_target, make_plan, recorded
from turbort.policy import Evidence
from turbort.profile import Profile, load_profile
from turbort.registry import Registry
from turbort.session import Session

PROMPTS = ("a red circle moves right", "a blue star moves left")


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--model", default="tiny")
    p.add_argument("--weights", type=Path)
    p.add_argument("--random", type=Path, metavar="DIR", help="make random weights of the model's size there, and use them")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    spec = get_model(args.model)
    if args.random:
        random_weights(spec, args.random)
    root = args.random or args.weights or spec.root or Path.cwd()
    registry, profile = Registry(), profile_with("w4a8")
    target = find_target(profile, registry)
    jobs = [Job(prompt, seed=number) for number, prompt in enumerate(PROMPTS)]
    begin = time.perf_counter()
    made = calibrate(Subject(spec, profile, registry, target, root), jobs)
    seconds = time.perf_counter() - begin
    full = jobs[0].resolved(spec)
    sites = recorded(spec, profile, size=(full.width or 0, full.height or 0), frames=full.frames or 0)
    planner = Planner(profile, registry, target)
    times = KernelTimes(measure(planner, sites))
    problem = Problem(planner, sites, made, Costs.of(target.device, (), profile.precision.compute, times))
    plane = pareto(problem, made, made.error_for(profile.quality.psnr), float("inf"))
    print(f"calibrated {len(made.sites)} sites in {seconds:.0f} s, {len(times.rows)} kernels measured")
    exact, rows = None, []
    uniform = {row.uniform.name: row.uniform for row in plane.uniform}
    eight = uniform["uniform w8a8"]
    plans = {"uniform fp32": None, "uniform w8a8": None, "uniform w4a8": None}
    contenders: list[tuple[str, Plan | None, Profile, float, float]] = [
        (name, None, profile_with(name.split()[1]), uniform[name].ms, uniform[name].error) for name in plans
    ]
    for name, error in (("planner, gate", plane.budget), ("planner, w8a8's error", eight.error)):
        plan = make_plan(spec, profile, registry, target=target, evidence=Evidence(made, times, error=error))
        contenders.append((name, plan, profile, plan.header["predicted"]["ms"], plan.header["predicted"]["error"]))
    for name, plan, wanted, ms, error in contenders:
        frames, step = run(spec, wanted, plan, jobs[0], root)
        exact = frames if exact is None else exact
        row = {"plan": name, "predicted ms": round(ms, 2), "step ms": round(step, 2), "predicted error": float(f"{error:.3g}")}
        rows.append({**row, "PSNR": round(psnr(frames, exact), 2)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if args.out:
        weights = "random" if args.random else str(made.header["checkpoints"])
        document = {
            "benchmark": "planner",
            "commit": commit(),
            "machine": describe_machine(),
            "model": spec.name,
            "weights": weights,
            "calibration seconds": round(seconds, 1),
            "rows": rows,
            "pareto": plane.as_data(),
        }
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def profile_with(least: str) -> Profile:
    """The CPU profile with every linear at `least`, or that as the planner's floor."""
    profile = load_profile("cpu")
    linear = profile.precision.linear.model_copy(update={"max": least, "min": least})
    return profile.model_copy(update={"precision": profile.precision.model_copy(update={"linear": linear})})


def run(spec: ModelSpec, profile: Profile, plan: Plan | None, job: Job, root: Path) -> tuple[np.ndarray, float]:
    """Frames in [0, 1], and the least processor milliseconds of a call of the transformer."""
    found: list[float] = []
    with Session.open(spec, profile, plan=plan, jobs=[job], root=root) as session:
        expert = session._experts.get(session._experts.roles[0])
        step = expert.step

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            out = step(*args, **kwargs)
            found.append(1e3 * (time.process_time() - begin))
            return out

        expert.step = timed
        for _ in range(2):
            result = session.generate([replace(job, out=None)])[0]
    return result.frames.astype(np.float32) / 255, min(found)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(max(np.square(a - b).mean(), 1e-10)))


def random_weights(spec: ModelSpec, folder: Path) -> None:
    """Every file of the model with random weights, and a tokenizer of the words above."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    from turbort.models.umt5 import Umt5
    from turbort.models.vae import build_vae
    from turbort.models.wan_dit import WanDit

    (folder / "text_encoder").mkdir(parents=True, exist_ok=True)
    words = ["<pad>", "</s>", "<unk>", *sorted(set(" ".join(PROMPTS).split()))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(7)
    models = {"dit": WanDit(spec.dit), "vae": build_vae(spec.vae), "text_encoder/model": Umt5(spec.text)}
    for name, model in models.items():
        weights = {}
        for key, value in model.state_dict().items():
            drawn = torch.randn(value.shape) / max(value[0].numel(), 1) ** 0.5
            weights[key] = drawn + 1 if key.endswith(("gamma", "norm_q.weight", "norm_k.weight")) else drawn
        save_file(weights, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
