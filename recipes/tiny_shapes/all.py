"""All stages in one process: autoencoder, teacher, student, sparse 8-bit student, evaluation and export."""

from __future__ import annotations

import time
from dataclasses import replace

from recipes.tiny_shapes import distill, finetune, teacher, vae_train
from recipes.tiny_shapes.common import load_compile_cache, options, parser, save_compile_cache, table

STAGES = ("vae", "teacher", "student", "sla", "evaluate", "export")


def main() -> None:
    p = parser(__doc__, 0.0)
    p.add_argument("--minutes-vae", type=float, default=4.5)
    p.add_argument("--minutes-teacher", type=float, default=8.5)
    p.add_argument("--minutes-student", type=float, default=5.0)
    p.add_argument("--minutes-sla", type=float, default=2.5)
    p.add_argument("--stages", default=",".join(STAGES), help="comma-separated part of " + ", ".join(STAGES))
    p.add_argument("--captions", type=int, default=200, help="held-out captions of the evaluation")
    distill.add_arguments(p)
    args = p.parse_args()
    chosen = args.stages.split(",")
    unknown = sorted(set(chosen) - set(STAGES))
    if unknown:
        raise SystemExit(f"unknown stages {unknown}; there are {', '.join(STAGES)}")
    o = options(args)
    cache = o.out / "compile_cache.bin"
    load_compile_cache(cache)
    rows = []
    for stage in (s for s in STAGES if s in chosen):
        begin = time.monotonic()
        timed = replace(o, minutes=getattr(args, f"minutes_{stage}", 0.0))
        if stage == "vae":
            vae_train.train(timed)
        elif stage == "teacher":
            teacher.train(timed)
        elif stage == "student":
            distill.train(timed, scm=args.scm)
        elif stage == "sla":
            finetune.train(timed)
        elif stage == "evaluate":
            from recipes.tiny_shapes import evaluate

            evaluate.run_all(o, captions=args.captions if not o.smoke else 2)
        else:
            from recipes.tiny_shapes import export

            export.export(o)
        rows.append((stage, f"{time.monotonic() - begin:.0f} s"))
    if o.compile:
        save_compile_cache(cache)
    table("stages", rows)


if __name__ == "__main__":
    main()
