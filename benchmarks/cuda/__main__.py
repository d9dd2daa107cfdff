"""`python -m benchmarks.cuda check|linear|passes|attention|vae|step|breakdown|e2e [--out FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

COMMANDS = ("check", "linear", "passes", "attention", "vae", "step", "breakdown", "e2e")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("command", nargs="+", choices=COMMANDS)
    parser.add_argument("--out", type=Path, help="folder for the JSON files (default: benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--tune", action="store_true", help="try other configurations, too")
    parser.add_argument("--save", action="store_true", help="with --tune: keep the best in the tuning file of this machine")
    parser.add_argument("--model", default="wan2.1-t2v-1.3b", help="model of step, breakdown and e2e")
    parser.add_argument("--profile", default="h200", help="profile of step, vae, breakdown and e2e")
    parser.add_argument("--dense", action="store_true", help="step: measure dense attention, too")
    parser.add_argument("--chunk", type=int, default=2, help="e2e: latent frames per chunk")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("needs an NVIDIA GPU: torch sees none", file=sys.stderr)
        return 2
    from benchmarks.cuda.results import RESULTS, Results

    good = True
    for command in args.command:
        started = time.perf_counter()
        print(f"== {command} on {torch.cuda.get_device_name()}", flush=True)
        results = Results(command)
        module = importlib.import_module(f"benchmarks.cuda.{command}")
        if command == "check":
            good &= module.run(results)
        else:
            module.run(results, args)
        results.note(f"{command} took", seconds=time.perf_counter() - started)
        results.write(args.out or RESULTS)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
