"""`turbort run` on a CPU, from start of the process to the finished file, next to the same model in diffusers.

    python -m benchmarks.cpu_demo [--repeat 5] [--out benchmarks/results/cpu_demo.json]

Every run is a fresh process. The first run of each contender is not counted: it warms the file cache and writes raw frames,
which are compared with each other. diffusers runs with dense attention, in float32, and in bfloat16
where the CPU multiplies it (elsewhere a run takes minutes).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, Measured, commit, describe_machine, measure
from turbort.models.spec import get_model

PROMPT = "a red circle moves right"
STAGES = ("start", "import", "load", "text", "sample", "decode", "write")


@dataclass(frozen=True)
class Contender:
    """A name, the command that makes `out` and writes its stages to `report`, and a word on what it computes."""

    name: str
    command: Callable[[Path, Path], list[str]]
    note: str


def main() -> None:
    args = _arguments()
    spec = get_model(args.model)
    defaults, preset = spec.defaults, spec.preset
    job = {
        "prompt": args.prompt,
        "seed": args.seed,
        "width": defaults.width,
        "height": defaults.height,
        "frames": defaults.frames,
        "fps": defaults.fps,
        "steps": preset.steps,
        "sigma_max": preset.sigma_max,
        "text_len": spec.dit.text_len,
        "latents": spec.latent_shape(defaults.width, defaults.height, defaults.frames),
    }
    machine = describe_machine()
    if machine["load_before"] > 0.5:
        say(f"warning: other programs are running (load {machine['load_before']:.1f}); wall times will not be repeatable")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        contenders = [_turbort(args, job)]
        if not args.alone:
            converted = folder / "diffusers"
            say("writing the same weights as a diffusers pipeline")
            measure([sys.executable, "-m", "benchmarks.diffusers_model", "--model", args.model, "--out", str(converted)],
                    log=folder / "convert.log")  # fmt: skip
            contenders += [_diffusers(converted, job, dtype) for dtype in _dtypes()]
        rows = [_measured(contender, args.repeat, folder) for contender in contenders]
        agreement = _agreement(folder, contenders)
    results = {
        "benchmark": "cpu_demo",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine,
        "model": spec.name,
        "job": job,
        "repeat": args.repeat,
        "runs": rows,
        "speedup": {row["name"]: round(row["seconds"]["median"] / rows[0]["seconds"]["median"], 2) for row in rows[1:]},
        "agreement": agreement,
    }
    _table(results)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    say(f"results in {args.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="tiny", help="model name, or a folder with a model.yaml")
    parser.add_argument("--profile", help="hardware profile for turbort (default: its own choice)")
    parser.add_argument("--alone", action="store_true", help="turbort only")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu_demo.json")
    return parser.parse_args()


def _turbort(args: argparse.Namespace, job: dict[str, Any]) -> Contender:
    script = Path(sys.executable).with_name("turbort")
    program = [str(script)] if script.exists() else [sys.executable, "-c", "from turbort.cli import main; main()"]
    options = ["--prompt", job["prompt"], "--seed", str(job["seed"]), "--model", args.model, "--quiet"]
    options += ["--profile", args.profile] if args.profile else []

    def command(out: Path, report: Path) -> list[str]:
        return [*program, "run", *options, "-o", str(out), "--report", str(report)]

    return Contender("turbort", command, f"profile {args.profile or 'of the device'}")


def _diffusers(folder: Path, job: dict[str, Any], dtype: str) -> Contender:
    def command(out: Path, report: Path) -> list[str]:
        options = ["--job", json.dumps(job), "--dtype", dtype, "--out", str(out), "--report", str(report)]
        return [sys.executable, "-m", "benchmarks.diffusers_run", str(folder), *options]

    return Contender(f"diffusers {dtype}", command, "WanPipeline, dense attention")


def _measured(contender: Contender, repeat: int, folder: Path) -> dict[str, Any]:
    report, log = folder / "report.json", folder / "run.log"
    say(f"{contender.name}: warming up")
    measure(contender.command(_frames_of(folder, contender), report), log=log)
    runs: list[Measured] = []
    stages: list[dict[str, float]] = []
    for number in range(repeat):
        found = measure(contender.command(folder / "out.mp4", report), log=log)
        inside = json.loads(report.read_text())["seconds"]
        runs.append(found)
        stages.append({"start": max(0.0, found.seconds - sum(inside.values())), **inside})
        say(f"{contender.name}: run {number + 1} of {repeat}: {found.seconds:.2f} s")
    seconds = [run.seconds for run in runs]
    return {
        "name": contender.name,
        "note": contender.note,
        "seconds": {
            "median": round(statistics.median(seconds), 3),
            "min": round(min(seconds), 3),
            "max": round(max(seconds), 3),
            "all": [round(value, 3) for value in seconds],
        },
        "cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 3),
        "peak_rss_bytes": max(run.peak_rss for run in runs),
        "stages": {name: round(statistics.median(row.get(name, 0.0) for row in stages), 3) for name in stages[0]},
    }


def _dtypes() -> list[str]:
    """What diffusers is run in on this CPU."""
    import torch

    return ["float32", "bfloat16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["float32"]


def _frames_of(folder: Path, contender: Contender) -> Path:
    return folder / f"{contender.name.replace(' ', '-')}.npy"


def _agreement(folder: Path, contenders: list[Contender]) -> dict[str, float | None]:
    """PSNR in dB of every contender's frames against the first's, over the whole clip; None where they are equal."""
    import numpy as np

    first, *others = (np.load(_frames_of(folder, contender)).astype("float32") for contender in contenders)
    found: dict[str, float | None] = {}
    for contender, frames in zip(contenders[1:], others, strict=True):
        error = float(((frames - first) ** 2).mean())
        found[contender.name] = round(10 * float(np.log10(255**2 / error)), 2) if error else None
    return found


def _table(results: dict[str, Any]) -> None:
    """The results for people, on stdout."""
    from rich.console import Console
    from rich.table import Table

    machine, job = results["machine"], results["job"]
    versions = machine["versions"]
    table = Table(
        title=f"{job['frames']} frames {job['width']}x{job['height']}, {job['steps']} steps, process start to finished file",
        caption=f"{machine['cpu']}, {machine['cores']} cores, torch {versions['torch']}; median of {results['repeat']}",
    )
    rows = results["runs"]
    table.add_column("")
    for row in rows:
        table.add_column(row["name"], justify="right")
    table.add_row("seconds", *(f"{row['seconds']['median']:.2f}" for row in rows))
    table.add_row("times turbort", "", *(f"{value:.2f}" for value in results["speedup"].values()))
    table.add_row("processor s", *(f"{row['cpu_seconds']:.2f}" for row in rows))
    table.add_row("peak MiB", *(f"{row['peak_rss_bytes'] / 2**20:.0f}" for row in rows), end_section=True)
    for stage in STAGES:
        table.add_row(stage, *(f"{row['stages'][stage]:.2f}" if stage in row["stages"] else "" for row in rows))
    Console().print(table)
    for name, value in results["agreement"].items():
        print(f"frames of {name} against turbort: {'equal' if value is None else f'{value:.1f} dB PSNR'}")


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
