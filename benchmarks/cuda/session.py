"""The measurements that matter, in the order of what they decide, within a fixed time: for a GPU that is there for minutes only.

First the kernels are checked at the workload's shapes by a process for nearly every core, which leaves them compiled. Then every
job is a process of its own with its own limit. All jobs are started at once, so that their imports are done when their turn
comes, and then run one after the other; a row is written as soon as it is measured, so that a killed job keeps its rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cuda.check import run_all, shape_tasks, table, workers
from benchmarks.cuda.results import line_of

LIMIT = 400.0
CHECKING = 90.0
"""Seconds for checking and compiling, before the first job."""
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Job:
    """Arguments of `python -m benchmarks.cuda` and the seconds they may take."""

    arguments: tuple[str, ...]
    limit: float


JOBS = (
    Job(("step", "breakdown"), 75),
    Job(("linear",), 40),
    Job(("attention",), 40),
    Job(("vae", "--quick"), 85),
    Job(("e2e",), 70),
    Job(("step", "--quick", "--model", "wan2.1-t2v-14b"), 60),
    Job(("tiny", "--captions", "200"), 60),
    Job(("passes",), 25),
    Job(("tune", "--quick"), 80),
    Job(("step", "--dense", "--quick"), 40),
)


def run(args: argparse.Namespace) -> bool:
    """Check, then run the jobs; rows are printed after each job and kept in `cuda_session.json` under `args.out`."""
    end = time.monotonic() + (args.limit or LIMIT)
    device, found = "", []
    checked = run_all(shape_tasks(args.only), workers(args), CHECKING)
    print(table(checked), flush=True)
    jobs = [job for job in JOBS if not args.jobs_only or job.arguments[0] in args.jobs_only.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        waiting = [_start(job, Path(folder) / f"{index}", args) for index, job in enumerate(jobs)]
        for job, process, path in waiting:
            name = " ".join(job.arguments)
            left = min(job.limit, end - time.monotonic())
            started = time.monotonic()
            outcome = _finish(process, left) if left > 3 else _drop(process)
            rows = _rows(path.with_suffix(".rows"))
            print(f"== {name}: {outcome} after {time.monotonic() - started:.0f} s", flush=True)
            for row in rows:
                print(line_of(row), flush=True)
            if outcome != "done" and left > 3:
                print("\n".join(_tail(path.with_suffix(".log"), 4)), flush=True)
            found.append({"job": name, "outcome": outcome, "rows": rows})
            device = next((row["device"] for row in rows if "device" in row), device)
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                content = {"device": device, "check": checked, "jobs": found}
                (args.out / "cuda_session.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return all(job["outcome"] == "done" for job in found)


def _start(job: Job, path: Path, args: argparse.Namespace) -> tuple[Job, subprocess.Popen[bytes], Path]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cuda", *job.arguments, "--wait"]
    command += ["--rows", str(path.with_suffix(".rows")), "--profile", args.profile]
    with path.with_suffix(".log").open("wb") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "4"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT, env=environment)
    return job, process, path


def _finish(process: subprocess.Popen[bytes], seconds: float) -> str:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended already, and its exit code says how
        process.stdin.write(b"go\n")
        process.stdin.close()
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        _drop(process)
        return f"stopped at {seconds:.0f} s"
    return "done" if code == 0 else f"exit code {code}"


def _drop(process: subprocess.Popen[bytes]) -> str:
    process.kill()
    process.wait()
    return "not run"


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # the last line of a killed job
    return rows


def _tail(path: Path, count: int) -> list[str]:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return [line[:300] for line in lines[-count:]]
