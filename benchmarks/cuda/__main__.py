"""`python -m benchmarks.cuda check|session|linear|passes|attention|tune|vae|step|breakdown|e2e|tiny [--out FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

MEASURING = ("linear", "passes", "attention", "tune", "vae", "step", "breakdown", "e2e", "tiny")
COMMANDS = ("check", "session", *MEASURING)
IMPORTED = ("turbort_cuda.kernels.sla", "turbort_cuda.kernels.linear8", "turbort_cuda.kernels.vae", "turbort.planner")
"""What a job of a session imports before its turn comes."""


def main() -> int:
    args = _arguments()
    import torch

    from benchmarks.cuda.workload import TOY

    if not torch.cuda.is_available() and not TOY:
        print("needs an NVIDIA GPU: torch sees none. TRITON_INTERPRET=1 rehearses at toy sizes on the CPU", file=sys.stderr)
        return 2
    args.model = args.model or importlib.import_module("benchmarks.cuda.workload").MODEL
    good = True
    for command in args.command:
        module = importlib.import_module(f"benchmarks.cuda.{command}")
        if command in ("check", "session"):
            good &= module.run(args)
        else:
            good &= _measure(module, command, args)
    return 0 if good else 1


def _measure(module: object, command: str, args: argparse.Namespace) -> bool:
    from benchmarks.cuda.results import RESULTS, Results, device_name, machine

    run = module.run  # type: ignore[attr-defined]
    if args.wait:
        args.wait = False
        for name in IMPORTED:
            importlib.import_module(name)
        if not sys.stdin.readline():
            return False  # the session has ended, and nobody asks any more: jobs that began now would all run at once
    started = time.perf_counter()
    print(f"== {command} on {device_name()}", flush=True)
    results = Results(command, args.rows)
    if args.rows:
        results.note("machine", **machine())
    good = True
    try:
        run(results, args)
    except Exception as error:
        good = False
        results.note(f"{command} FAILED", error=f"{type(error).__name__}: {str(error)[:400]}")
        if not args.rows:
            raise
    results.note(f"{command} took", seconds=time.perf_counter() - started)
    if not args.rows:
        results.write(args.out or RESULTS)
    return good


def _arguments() -> argparse.Namespace:
    from benchmarks.cuda.check import arguments

    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("command", nargs="+", choices=COMMANDS)
    parser.add_argument("--out", type=Path, help="folder for the JSON files (default: benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--save", action="store_true", help="tune: keep the best in the tuning file of this machine")
    parser.add_argument("--model", help="model of step, breakdown and e2e (default: wan2.1-t2v-1.3b)")
    parser.add_argument("--profile", default="h200", help="profile of step, vae, breakdown and e2e")
    parser.add_argument("--dense", action="store_true", help="step: measure dense attention instead of SLA")
    parser.add_argument("--chunk", type=int, default=2, help="e2e: latent frames per chunk")
    parser.add_argument("--captions", type=int, default=64, help="tiny: how many held-out captions")
    parser.add_argument("--cpu", action="store_true", help="tiny: the same clips on the CPU, too")
    parser.add_argument("--rows", type=Path, help="write rows here as they come, and nothing else")
    parser.add_argument("--wait", action="store_true", help="import everything, then wait for a line on standard input")
    parser.add_argument("--jobs-only", default="", metavar="A,B", help="session: only jobs that begin with these commands")
    arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
