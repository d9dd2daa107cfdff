"""All stages in one process: text encoder, autoencoder, teacher, student, sparse 8-bit student, export and evaluation.

Several GPUs: torchrun --standalone --nproc-per-node 2 -m recipes.tiny_shapes.all --out DIR
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recipes.tiny_shapes import distill, finetune, parallel, teacher, text_train, vae_train
from recipes.tiny_shapes.common import Options, load_compile_cache, options, parser, save_compile_cache, table
from recipes.tiny_shapes.data import workers

STAGES = ("text", "vae", "teacher", "student", "sla", "export", "evaluate")
# What a stage must reach before the next one is worth its time; `a/b` is value b inside a. Shares of 144 or 192 clips have a
# standard error of 2 points, so these lie under the aims of 0.95, 0.92 and 0.90.
GATES: Mapping[str, Mapping[str, float]] = {
    "text": {"read": 0.99},
    "vae": {"psnr": 30.0, "right": 0.97},
    "teacher": {"held_out/right": 0.91},
    "student": {"held_out/right": 0.87},
    "sla": {"held_out/right": 0.85},
}
REFUSED = 3  # exit status when a stage stays below its gate


def shortfall(stage: str, result: Mapping[str, Any]) -> list[str]:
    """One line per value of a stage's result that is under its gate."""
    lines = []
    for path, least in GATES.get(stage, {}).items():
        value: Any = result
        for key in path.split("/"):
            value = value[key]
        if not value >= least:
            lines.append(f"{stage}: {path} is {value:.3f}, at least {least:g} is needed")
    return lines


def run_stage(stage: str, o: Options, *, scm: bool, captions: int) -> dict[str, Any]:
    if stage == "text":
        return text_train.train(o)
    if stage == "vae":
        return vae_train.train(o)
    if stage == "teacher":
        return teacher.train(o)
    if stage == "student":
        return distill.train(o, scm=scm)
    if stage == "sla":
        return finetune.train(o)
    if stage == "export":
        from recipes.tiny_shapes import export

        if parallel.lead():
            export.export(o)
    else:
        from recipes.tiny_shapes import evaluate

        evaluate.run_all(o, captions=captions)
    return {}


def main() -> None:
    p = parser(__doc__, 0.0)
    p.add_argument("--minutes-text", type=float, default=0.5)
    p.add_argument("--minutes-vae", type=float, default=4.5)
    p.add_argument("--minutes-teacher", type=float, default=8.0)
    p.add_argument("--minutes-student", type=float, default=4.5)
    p.add_argument("--minutes-sla", type=float, default=2.5)
    p.add_argument("--minutes-evaluate", type=float, default=3.0)
    p.add_argument("--stages", default=",".join(STAGES), help="comma-separated part of " + ", ".join(STAGES))
    p.add_argument("--captions", type=int, default=200, help="held-out captions of the evaluation")
    p.add_argument("--no-gates", dest="gates", action="store_false", help="go on after a stage that is below its gate")
    distill.add_arguments(p)
    args = p.parse_args()
    chosen = args.stages.split(",")
    unknown = sorted(set(chosen) - set(STAGES))
    if unknown:
        raise SystemExit(f"unknown stages {unknown}; there are {', '.join(STAGES)}")
    o = options(args)
    parallel.start(o.device)
    cache = o.out / "compile_cache.bin"
    load_compile_cache(cache)
    rows, below = [], []
    for stage in (s for s in STAGES if s in chosen):
        begin = time.monotonic()
        timed = replace(o, minutes=getattr(args, f"minutes_{stage}", 0.0))
        result = run_stage(stage, timed, scm=args.scm, captions=args.captions if not o.smoke else 2)
        parallel.barrier()
        rows.append((stage, f"{time.monotonic() - begin:.0f} s"))
        if parallel.lead():
            print(f"stage {stage} is done", flush=True)
        below = shortfall(stage, result) if args.gates and not o.smoke else []
        if below:
            break
    if o.compile and parallel.lead():
        save_compile_cache(cache)
    table("stages", rows)
    workers().close()
    parallel.finish()
    if below:
        raise SystemExit("stopped: " + "; ".join(below) if parallel.lead() else REFUSED)


if __name__ == "__main__":
    main()
