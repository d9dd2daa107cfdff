"""Whole models with random full-size weights, from files in TurboDiffusion's quantised dialect that `turbort quantize` writes.

    python -m benchmarks.models [--out FOLDER] [--work FOLDER] [--seconds 240] [--toy]

1.3B and 14B end to end; load to first step against reading the file once; the memory forecast against the allocator's peak
of every stage, and what is reserved; 1.3B in 8 GiB and 14B in 24 GiB, enforced, with their slowdown. Every part is a process of
its own, with a prompt cache of its own: one that fails costs its own rows only, and results are written after each. `--toy`
rehearses everything on a CPU with small models.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, commit

SMALL, LARGE = "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"


@dataclass(frozen=True)
class Part:
    """One child process: its name, its arguments, and the seconds it may take."""

    name: str
    words: tuple[str, ...]
    seconds: float


PARTS = (
    Part("files 1.3B", ("files", "--model", SMALL), 90),
    Part("run 1.3B", ("run", "--model", SMALL), 150),
    Part("run 1.3B in 8 GiB", ("run", "--model", SMALL, "--budget", "8"), 100),
    Part("files 14B", ("files", "--model", LARGE), 120),
    Part("run 14B", ("run", "--model", LARGE), 120),
    Part("run 14B in 24 GiB", ("run", "--model", LARGE, "--budget", "24"), 120),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for models.json and logs")
    parser.add_argument("--work", type=Path, help="where the files go (default: memory-backed /dev/shm where it has room)")
    parser.add_argument("--seconds", type=float, default=240, help="begin no part that could not end within this time")
    parser.add_argument("--only", default="", help="words that a part's name must have, such as 1.3B")
    parser.add_argument("--profile", help="default: h100, or cpu for a rehearsal")
    parser.add_argument("--toy", action="store_true", help="small models, for a rehearsal on a CPU")
    args = parser.parse_args()
    args.profile = args.profile or ("cpu" if args.toy else "h100")
    args.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="models-", dir=args.work or _roomy()))
    started, results = time.perf_counter(), {}
    try:
        for part in (part for part in PARTS if args.only in part.name):
            left = args.seconds - (time.perf_counter() - started)
            if left < 15:
                results[part.name] = {"error": f"not begun: {left:.0f} s were left"}
            else:
                results[part.name] = _child(part, work, args, min(part.seconds, left))
            say(f"{time.perf_counter() - started:6.1f} s  {part.name}: {_line(results[part.name])}")
            document = {"commit": commit(), "toy": args.toy, "profile": args.profile, "parts": results, "judged": judged(results)}
            (args.out / "models.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for line in judged(results):
        say(line)
    return 1 if any("error" in found for found in results.values()) else 0


def say(line: str) -> None:
    print(line, flush=True)


def _roomy() -> str | None:
    shm = Path("/dev/shm")
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free > 40 * 2**30 else None


def _child(part: Part, work: Path, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    slug = part.name.replace(" ", "-")
    out, log = work / f"{slug}.json", args.out / f"models-{slug}.log"
    model = part.words[part.words.index("--model") + 1]
    words = [*part.words, "--folder", str(work / model), "--json", str(out), "--profile", args.profile]
    words += ["--toy"] if args.toy else []
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins" / "cuda"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **_plugins()}
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.models.part", *words], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
        try:
            status: int | str = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            status = f"stopped after {seconds:.0f} s"
    if status != 0 or not out.is_file():
        tail = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-12:]
        return {"error": str(status), "tail": tail}
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _plugins() -> dict[str, str]:
    """A copied tree has no entry points; then the CUDA plugin is named in the environment."""
    from turbort.registry import Registry

    return {} if "cuda" in Registry().plugins else {"TURBORT_PLUGINS": "turbort_cuda"}


def _line(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"FAILED ({found['error']})" + "".join(f"\n            {line}" for line in found.get("tail", []))
    if found["part"] == "files":
        return f"quantised in {found['quantize_s']:.1f} s, {found['bytes'] / 2**30:.2f} GiB"
    video = found["videos"][-1]
    stages = ", ".join(f"{name} {value:.2f}" for name, value in video.items() if name != "total_s")
    load = f"load {found['dit_load_s']:.2f} s (file read once: {found['read_once_s']:.2f} s)"
    return f"{load}, warm video {video['total_s']:.2f} s ({stages})"


def judged(results: dict[str, Any]) -> list[str]:
    """One line per judged statement, with its figures, or why it has none."""
    lines = []
    good = {name: found for name, found in results.items() if "error" not in found}
    for size in ("1.3B", "14B"):
        found = good.get(f"run {size}")
        lines.append(f"{size} end to end from a quantised file: " + ("no figures" if found is None else _end_to_end(found)))
    for name, found in good.items():
        if found["part"] == "run":
            rows = [f"{row['stage']} {row['ratio']:.3f}" if row["ratio"] else f"{row['stage']} cached" for row in found["memory"]]
            worst = max((abs(row["ratio"] - 1) for row in found["memory"] if row["ratio"]), default=None)
            verdict = "not measured here" if worst is None else f"worst off by {100 * worst:.1f} %"
            lines.append(f"memory forecast over measured peak, {name[4:]}: {', '.join(rows) or 'no allocator peaks'} ({verdict})")
            lines += [_reserved(name[4:], found)] if found["memory"] else []
    for size, budget in (("1.3B", 8), ("14B", 24)):
        free, tight = good.get(f"run {size}"), good.get(f"run {size} in {budget} GiB")
        text = "no figures"
        if free and tight:
            ratio = tight["videos"][-1]["total_s"] / free["videos"][-1]["total_s"]
            steps = len(tight["steps_down"])
            verdict = f"NOT PREDICTED: {steps} steps down" if steps else "as planned, no step down"
            text = f"completes, {ratio:.2f} times the seconds without a budget; {verdict}"
        lines.append(f"{size} in {budget} GiB: {text}")
    return lines


def _reserved(name: str, found: dict[str, Any]) -> str:
    """The most that the card lost, over all stages, against the forecast."""
    measured = max((row["measured_reserved"] or 0 for row in found["memory"]), default=0)
    wanted = max(row["forecast_reserved"] for row in found["memory"])
    limit = f" of {found['budget_gib']:g} allowed" if found["budget_gib"] else ", what earlier stages left included"
    return f"reserved, {name}: forecast {wanted / 2**30:.2f} GiB, measured {measured / 2**30:.2f} GiB{limit}"


def _end_to_end(found: dict[str, Any]) -> str:
    cold, warm, once = found["videos"][0], found["videos"][-1], found["read_once_s"]
    first = found["load_to_first_step_s"]
    return (
        f"prompt to {found['file']} {cold['total_s']:.2f} s cold, {warm['total_s']:.2f} s warm; transformer loaded in "
        f"{found['dit_load_s']:.2f} s ({found['dit_load_s'] / once:.2f} times reading its file once, {once:.2f} s), load to "
        f"first step {first:.2f} s ({first / once:.2f} times; compiles and captures included)"
    )


if __name__ == "__main__":
    sys.exit(main())
