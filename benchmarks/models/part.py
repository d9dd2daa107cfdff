"""One measurement in a process of its own: `python -m benchmarks.models.part files|run ...`; one JSON object goes to --json."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.models.synthetic import WORDS, spec_of, write_models

QUANTISED = {
    "wan2.1-t2v-1.3b": "TurboWan2.1-T2V-1.3B-480P-quant.pth",
    "wan2.1-t2v-14b": "TurboWan2.1-T2V-14B-480P-quant.pth",
}
PIECE = 64 << 20


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("files", "run"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--profile", default="h100")
    parser.add_argument("--budget", type=float, help="GiB that the process may use on the device")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    found = {"part": args.part, "model": args.model, **(files(args) if args.part == "files" else run(args))}
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def files(args: argparse.Namespace) -> dict[str, Any]:
    """Synthetic files, and the transformer quantised into TurboDiffusion's dialect by the command a user would type."""
    started = time.perf_counter()
    source = write_models(spec_of(args.model, toy=args.toy), args.folder)
    wrote = time.perf_counter() - started
    target = args.folder / QUANTISED[args.model]
    words = ["quantize", str(source), str(target), "--precision", "w8a8-block128", "--dialect", "turbodiffusion", "--quiet"]
    words += ["--device", "cuda"] if torch.cuda.is_available() else []
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "turbort", *words], check=True, stdout=subprocess.DEVNULL)
    return {"source_s": wrote, "quantize_s": time.perf_counter() - started, "bytes": target.stat().st_size}


def read_once(paths: list[Path]) -> float:
    """Seconds to read files from the page cache, each byte once, in one thread into one buffer."""
    buffer = bytearray(PIECE)
    started = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def _memory(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Per stage: bytes of tensors as forecast and as measured, and the same of what is reserved for them.

    A stage has no measured bytes where it took its result from a cache. Without a budget an allocator keeps what earlier stages
    left, so what is reserved may be more than a stage needs.
    """
    rows = []
    for stage in report["memory"]["stages"]:
        row = {"stage": stage["stage"], "forecast": stage["allocated"], "forecast_reserved": stage["reserved"]}
        row |= {"measured": report["peak_bytes"].get(stage["stage"])}
        row |= {"measured_reserved": report["reserved_bytes"].get(stage["stage"])}
        row["ratio"] = row["forecast"] / row["measured"] if row["measured"] else None
        rows.append(row)
    return rows


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prompt to file twice: load, first step, every stage's peak against its forecast, and the second video's seconds."""
    from turbort.embed import PromptCache
    from turbort.job import Event, Job
    from turbort.profile import load_profile
    from turbort.registry import Registry
    from turbort.session import Session

    spec, profile = spec_of(args.model, toy=args.toy), load_profile(args.profile)
    budget = None if args.budget is None else round(args.budget * 2**30)
    cuda = torch.cuda.is_available()
    if budget is not None and cuda:
        torch.cuda.set_per_process_memory_fraction(budget / torch.cuda.get_device_properties(0).total_memory)
    dit = args.folder / QUANTISED[args.model]
    read_once([dit])  # into the page cache
    once = read_once([dit])
    suffix = "mp4" if importlib.util.find_spec("av") else "npy"
    prompt = " ".join(WORDS)
    jobs = [Job(prompt, seed=seed, out=args.folder / f"{args.model}-{seed}.{suffix}") for seed in (1, 2, 3)]
    # Of its own for every part: a prompt that another part has embedded would spare this one the encoder.
    prompts = args.folder / f"prompts-{args.json.stem}"
    times: dict[str, float] = {}

    def told(event: Event) -> None:
        key = f"{event.stage} {event.message}".strip() if event.stage == "load" else event.stage
        if cuda and (event.stage, event.step) == ("sample", 1):
            torch.cuda.synchronize()  # the event comes when the step was launched
        times.setdefault(f"first {key}", time.perf_counter())
        times[f"last {key}"] = time.perf_counter()

    opened = time.perf_counter()
    options: dict[str, Any] = {} if cuda else {"on": "cpu"}
    with Session.open(
        spec, profile, registry=Registry(), jobs=jobs[:1], root=args.folder, on_event=told, memory_budget=budget,
        cache=PromptCache(prompts), **options,
    ) as session:  # fmt: skip
        made, videos = time.perf_counter(), []
        for job in jobs:
            before, began = dict(session.watch.seconds), time.perf_counter()
            session.generate([job], told)
            total = time.perf_counter() - began
            stages = {name: value - before.get(name, 0.0) for name, value in session.watch.seconds.items()}
            videos.append({"total_s": total, **{name: round(value, 3) for name, value in stages.items() if value > 0}})
            if job is jobs[0]:
                first_step = times["first sample"] - began
        report = session.report()
        encoders = session._embedder.loads
    name = spec.experts[0] if spec.experts else "dit"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "budget_gib": args.budget,
        "file_bytes": dit.stat().st_size,
        "read_once_s": once,
        "dit_load_s": times[f"last load {name}"] - times[f"first load {name}"],
        "open_s": made - opened,
        "first_step_s": first_step,
        "load_s": report["seconds"]["load"],
        "load_to_first_step_s": report["seconds"]["load"] + first_step - videos[0].get("text", 0.0),
        "videos": videos,
        "file": suffix,
        "memory": _memory(report) if cuda else [],
        "residency": report["memory"]["residency"],
        "needed": report["memory"]["needed"],
        "steps_down": report["memory"]["steps_down"],
        "text_encoder_loads": encoders,
        "executed": [[row["op"], row["precision"], row["provider"], row["calls"]] for row in report["executed"]],
    }


if __name__ == "__main__":
    sys.exit(main())
