"""Is every kernel right on this GPU? Kernels at the workload's shapes, then the whole conformance suite, in isolated processes.

Compiling is most of the work, so there is a worker for nearly every core; the GPU may be busy with something else. Exit code 1
when a kernel is over its budget, fails, or takes its process with it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.cuda.check_worker import suite
from benchmarks.cuda.workers import Pool, Row

WORTH = ("sla_attention", "attention", "linear", "qk_norm_rope", "norm_modulate", "gated_residual_norm_modulate", "gelu_quant")
"""Ops in the order of what they decide; the others follow."""
TABLE = 9_500
"""Characters of the last table: what a terminal that keeps the end of the output still shows."""
LIMIT = 185.0
NEAREST = 12
"""How many passing shapes are shown; the file has them all."""


def run(args: argparse.Namespace) -> bool:
    """Run everything, print the table, write `cuda_check_<device>.json` under `args.out`; True when all is well."""
    started = time.perf_counter()
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "interpreter"
    jobs = workers(args)
    rows = run_all([*shape_tasks(args.only), *_case_tasks(args.only)], jobs, args.limit or LIMIT)
    seconds = time.perf_counter() - started
    text = table(rows)
    print(text, flush=True)
    counts = Counter(row["verdict"] for row in rows)
    print(f"check on {name}, {jobs} workers, {seconds:.0f} s: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        path = Path(args.out) / f"cuda_check_{name.replace(' ', '_')}.json"
        path.write_text(json.dumps({"device": name, "torch": torch.__version__, "seconds": seconds, "rows": rows}), "utf-8")
    return not any(counts[verdict] for verdict in ("FAIL", "lost"))


def workers(args: argparse.Namespace) -> int:
    """How many processes: nearly one per core, which compiling needs."""
    return int(args.jobs or max(2, min(28, (os.cpu_count() or 4) - 2)))


def run_all(tasks: list[Row], jobs: int, seconds: float) -> list[Row]:
    """The rows of these tasks, on every GPU that is there."""
    import torch

    return Pool("benchmarks.cuda.check_worker", jobs, torch.cuda.device_count(), seconds).run(tasks)


def shape_tasks(only: str) -> list[Row]:
    """Tasks for the kernels at the workload's shapes."""
    from benchmarks.cuda.shapes import GROUPS, names

    tasks: list[Row] = []
    for group in GROUPS:
        chosen = [name for name in names(group) if fnmatchcase(name, only)]
        # Few at a time for compiling, and not one by one: each worker's checks hold some GiB.
        tasks += [{"kind": "shape", "items": chosen[start : start + 4]} for start in range(0, len(chosen), 4)]
    return [task for task in tasks if task["items"]]


def _case_tasks(only: str) -> list[Row]:
    """Tasks for the conformance suite: cases of one sample together, which share its true result."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    late: list[str] = []
    for case in suite().cases:
        op, kernel, _, sample = case.split("/")
        if fnmatchcase(case, only):
            (late if kernel == "torch" else groups[op, sample]).append(case)
    order = {op: index for index, op in enumerate(WORTH)}
    ranked = sorted(groups.items(), key=lambda entry: order.get(entry[0][0], len(order)))
    tasks = [{"kind": "case", "items": cases} for _, cases in ranked]
    tasks += [{"kind": "case", "items": late[start : start + 12]} for start in range(0, len(late), 12)]
    if only == "*":
        tasks.append({"kind": "case", "items": [*suite().backend_ids, "ledger"]})
    return [task for task in tasks if task["items"]]


def table(rows: list[Row]) -> str:
    """Shapes with their errors, then what failed, grouped by message, then per kernel what passed; at most `TABLE` characters."""
    shapes = [row for row in rows if " " in row["name"]]
    cases = [row for row in rows if row not in shapes]
    good = sorted((row for row in shapes if row["verdict"] == "ok"), key=lambda row: -row["nmse"] / max(row["budget"], 1e-30))
    lines = [_shape(row) for row in shapes if row["verdict"] not in ("ok", "not run")]
    lines.append(f"-- {len(good)} of {len(shapes)} shapes are within their budget; nearest to it:")
    lines += [_shape(row) for row in good[:NEAREST]]
    failures: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in cases:
        if row["verdict"] in ("FAIL", "lost"):
            group = "/".join(row["name"].split("/")[:3])
            message = str(row.get("message") or row.get("error") or "")
            failures[group, str(row.get("check") or row["verdict"]), message[:150]].append(row["name"].rpartition("/")[2])
    lines.append(f"-- {sum(map(len, failures.values()))} conformance cases failed")
    for (group, check, message), samples in sorted(failures.items(), key=lambda entry: -len(entry[1])):
        lines.append(f"{group} x{len(samples)} [{check}] {samples[0]}: {message}")
    passed: dict[str, Counter[str]] = defaultdict(Counter)
    for row in cases:
        passed["/".join(row["name"].split("/")[:2])][row["verdict"]] += 1
    summary = [f"{kernel}: " + " ".join(f"{n} {verdict}" for verdict, n in found.items()) for kernel, found in passed.items()]
    return _fit(lines, summary)


def _shape(row: Row) -> str:
    if "nmse" in row:
        return f"{row['verdict']:<5}{row['name']:<52} nmse {row['nmse']:.2e} of {row['budget']:.1e}"
    return f"{row['verdict']:<5}{row['name']:<52} {str(row.get('error', ''))[:160]}"


def _fit(lines: list[str], summary: list[str]) -> str:
    end = "; ".join(summary)[:2500]
    room, kept = TABLE - len(end), []
    for number, line in enumerate(lines):
        room -= len(line) + 1
        if room < 0:
            kept.append(f"... {len(lines) - number} more lines in the JSON file")
            break
        kept.append(line)
    return "\n".join([*kept, end])


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `check` takes on the command line."""
    parser.add_argument("--jobs", type=int, default=0, help="check: worker processes (default: nearly one per core)")
    parser.add_argument("--limit", type=float, help="check, session: seconds after which the rest is not run (185, 400)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="check, tune: only these cases and shapes, or contests")


__all__: list[Any] = ["arguments", "run", "table"]
