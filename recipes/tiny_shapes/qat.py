"""Quantisation-aware training against rounding afterwards: the SLA stage once unrounded and once per precision, and their scores.

The arm `float` fine-tunes for sparse attention alone; rounding its weights and activations afterwards is PTQ. Each other arm
trains with the operands rounded as its precision rounds them (the forward of `turbort.qat`). Every row is scored on the same
held-out captions by the oracle, and by PSNR against the float arm's clips from the same noise.

    python -m recipes.tiny_shapes.qat --out runs/tiny --minutes 7.5    # trains every arm; needs vae, teacher, student
    python -m recipes.tiny_shapes.qat --out runs/tiny --arms none --score   # only the table, from what is there
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from recipes.tiny_shapes import finetune, parallel
from recipes.tiny_shapes.common import Options, options, parser, prepare, table
from recipes.tiny_shapes.config import SLA_TOPK
from recipes.tiny_shapes.data import workers
from recipes.tiny_shapes.distill import load_student
from recipes.tiny_shapes.nets import Mode
from recipes.tiny_shapes.scene import held_out_scenes
from recipes.tiny_shapes.scoring import Model, Recipe, captions_for, generate, judge_all, summary
from recipes.tiny_shapes.teacher import load_teacher
from recipes.tiny_shapes.vae_train import load_vae

ARMS = {
    "float": Mode(topk=SLA_TOPK),
    "w8a8": Mode(topk=SLA_TOPK, linear="w8a8", int8=True),
    "w4a8": Mode(topk=SLA_TOPK, linear="w4a8", int8=True),
}


def stage(arm: str) -> str:
    """The folder of an arm's weights; the shipped model's own stage is the w8a8 arm."""
    return "sla" if arm == "w8a8" else f"sla-{arm}"


def rows(o: Options, clips: int) -> list[dict[str, Any]]:
    """One row per kind of training and precision, for every arm whose weights are there."""
    device = prepare(o)
    s = o.sizes
    vae = load_vae(o.out, s, device, compile=o.compile)
    _, text, _ = load_teacher(o.out, s, device, compile=o.compile)
    scenes = held_out_scenes(clips, 1)
    captions = captions_for(scenes, 2)

    def clips_of(arm: str, mode: Mode) -> np.ndarray:
        dit = load_student(o.out, s, device, compile=o.compile, stage=stage(arm))
        return generate(Model(s, text, dit, vae, device), captions, Recipe("rcm", 4, mode=mode), seed=1)

    exact = clips_of("float", ARMS["float"])
    found = []
    for kind, arm, name in (("float", "float", "float"), *(("PTQ", "float", n) for n in ("w8a8", "w4a8")),
                            *(("QAT", n, n) for n in ("w8a8", "w4a8"))):  # fmt: skip
        if not (o.out / stage(arm)).is_dir():
            continue
        frames = exact if kind == "float" else clips_of(arm, ARMS[name])
        verdict = summary(judge_all(frames, scenes))
        found.append({"training": kind, "precision": name, "right": verdict["right"], "psnr": psnr(frames, exact)})
    return found


def psnr(frames: np.ndarray, exact: np.ndarray) -> float:
    """dB over all pixels of all clips."""
    error = np.square(frames.astype(np.float32) - exact.astype(np.float32)).mean()
    return round(float(20 * np.log10(255) - 10 * np.log10(max(error, 1e-6))), 2)


def main() -> None:
    p = parser(__doc__, 7.5)
    p.add_argument("--arms", default=",".join(ARMS), help=f"what to train, of {', '.join(ARMS)}; or none")
    p.add_argument("--score", action="store_true", help="make the table after training")
    p.add_argument("--clips", type=int, default=192, help="held-out captions of the table")
    args = p.parse_args()
    o = options(args)
    chosen = [] if args.arms == "none" else args.arms.split(",")
    unknown = sorted(set(chosen) - set(ARMS))
    if unknown:
        raise SystemExit(f"unknown arms {unknown}; there are {', '.join(ARMS)}")
    for arm in chosen:
        finetune.train(replace(o, minutes=o.minutes / len(chosen)), stage(arm), ARMS[arm])
        parallel.barrier()
    if args.score and parallel.lead():
        with torch.no_grad():
            made = rows(o, args.clips if not o.smoke else 2)
        table("PTQ and QAT", [tuple(made[0]), *(tuple(map(str, row.values())) for row in made)])
        from recipes.tiny_shapes.common import Run

        Run("qat", o).write("qat.json", {"rows": made, "clips": args.clips})
    workers().close()
    parallel.finish()


if __name__ == "__main__":
    main()
