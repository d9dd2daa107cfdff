"""Stage 6: score the teacher, the dense student, and the shipped model under real plans, on held-out captions.

The teacher's and the dense student's scores are those of their stages. The shipped folder runs through `turbort.Session`:
planned, bound, with the int8 codes of its file and turbort's own samplers, once per precision and top-k. Rows are made in order
of importance until the time is over; results go into `evaluate/scores.json` and `evaluate/table.md`.

    python -m recipes.tiny_shapes.evaluate --out runs/tiny [--captions 200] [--model DIR] [--rows 2]
"""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.tiny_shapes import parallel, torchdevice
from recipes.tiny_shapes.common import Options, Run, options, parser, prepare, table
from recipes.tiny_shapes.config import TEACHER_STEPS
from recipes.tiny_shapes.scene import held_out_scenes
from recipes.tiny_shapes.scoring import captions_for, contact_sheet, judge_all, summary

SEED = 1
BATCH = 20  # clips per call of the transformer on a GPU
SHARES = ("right", "color", "shape", "motion", "one_object", "two_objects")


@dataclass(frozen=True)
class Setting:
    """Precisions and sparsity of one row."""

    name: str
    linear: str = "w8a8"
    attention: str = "int8"
    compute: str = "fp32"
    topk: float = 0.1

    def profile(self, backend: str, batch: int) -> Any:
        """The profile that asks for this."""
        from turbort.profile import parse_profile

        return parse_profile(
            f"schema: 1\nname: evaluate\ntarget: {{backend: {backend}, arch: ['*']}}\n"
            f"precision: {{io: {self.compute}, compute: {self.compute}, attention: {self.attention}, linear: {self.linear}, "
            f"vae: {self.compute}, text: {self.compute}}}\n"
            f"attention: {{kind: sla, topk: {self.topk}, block: [64, 128]}}\n"
            f"batch: {{mode: fixed, size: {batch}}}\nfallback: error\n"
        )


# The first is what turbort runs by default. Five key blocks: top-k 0.1 and 0.2 both keep one, 0.5 two, 1.0 all.
SETTINGS = (
    Setting("w8a8 + int8, SLA 0.1"),
    Setting("w4a8 + int8, SLA 0.1", linear="w4a8"),
    Setting("bf16, SLA 0.1", linear="bf16", attention="bf16", compute="bf16"),
    Setting("w8a8 + int8, SLA 0.5", topk=0.5),
    Setting("w8a8 + int8, SLA 1.0", topk=1.0),
    Setting("fp32, SLA 0.1", linear="fp32", attention="fp32"),
    Setting("w8a8 + int8, SLA 0.2", topk=0.2),
)


def open_session(folder: Path, setting: Setting, device: torch.device, batch: int) -> Any:
    """A session of the model in `folder` under `setting`, on the CPU or on this process's GPU."""
    from turbort.job import Job
    from turbort.models.tiny import read_spec
    from turbort.registry import Registry
    from turbort.session import Session

    plugin: types.ModuleType = torchdevice
    registry = Registry(extra=[plugin] if device.type == "cuda" else [])
    backend = torchdevice.NAME if device.type == "cuda" else "reference"
    spec = read_spec(folder / "model.yaml")
    return Session.open(spec, setting.profile(backend, batch), registry=registry, jobs=[Job("")] * batch, root=folder)


def shipped_frames(folder: Path, setting: Setting, texts: list[str], numbers: list[int], device: torch.device) -> np.ndarray:
    """uint8 frames [N, T, H, W, 3]; clip i has seed 1000 SEED + numbers[i], whatever its batch."""
    from turbort.job import Job

    batch = min(BATCH if device.type == "cuda" else 1, len(texts))
    with open_session(folder, setting, device, batch) as session:
        jobs = [Job(text, seed=1000 * SEED + i) for text, i in zip(texts, numbers, strict=True)]
        return np.stack([result.frames for result in session.generate(jobs)])


def score_shipped(
    folder: Path, setting: Setting, count: int, device: torch.device, sheet: Path | None = None
) -> dict[str, Any]:
    """Shares as `scoring.summary` gives them, over `count` held-out captions."""
    scenes = held_out_scenes(count, SEED)
    texts = captions_for(scenes, SEED + 1)
    mine = parallel.split(list(range(count)))
    texts, scenes = [texts[i] for i in mine], [scenes[i] for i in mine]
    frames = shipped_frames(folder, setting, texts, mine, device)
    rows = judge_all(frames, scenes)
    if sheet is not None and parallel.lead():
        contact_sheet(sheet, frames, rows, texts)
    return summary(parallel.gather(rows))


def trained_rows(out: Path) -> dict[str, dict[str, Any]]:
    """What stages 2 and 3 measured on held-out captions, in the training networks: teacher with guidance and dense student."""
    found: dict[str, dict[str, Any]] = {}
    for stage in ("teacher", "student"):
        path = out / stage / f"{stage}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            how = f"{TEACHER_STEPS} steps, guidance {result['guidance']:g}" if "guidance" in result else "4 steps, dense"
            found[f"{stage}, {how}"] = result["held_out"]
    return found


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table of the model card."""
    head = ["model and arithmetic", "captions", *(k.replace("_", " ") for k in SHARES)]
    lines = [head, ["---"] * len(head)]
    lines += [[name, str(row["captions"]), *(f"{100 * row[k]:.1f} %" for k in SHARES)] for name, row in rows.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def run_all(
    o: Options, *, captions: int = 200, model: Path | None = None, rows: int = len(SETTINGS)
) -> dict[str, dict[str, Any]]:
    """All rows that fit into `o.minutes` (0: all), written after each."""
    device = prepare(o)
    run = Run("evaluate", o)
    folder = model or o.out / "export" / "tiny"
    found: dict[str, dict[str, Any]] = {}

    def keep(more: dict[str, dict[str, Any]]) -> None:
        for name, row in more.items():
            found[name] = row
            run.say(f"{name}: {row['right']:.3f} right of {row['captions']}")
        run.write("scores.json", found)
        if parallel.lead():
            (run.folder / "table.md").write_text(markdown(found))

    settings = list(SETTINGS[:rows])
    keep({settings[0].name: score_shipped(folder, settings[0], captions, device, run.folder / "samples.png")})
    keep(trained_rows(o.out))
    for setting in settings[1:]:
        if o.minutes and parallel.agree_number(run.elapsed) > o.minutes * 60:
            run.say(f"no time for {setting.name}")
            continue
        keep({setting.name: score_shipped(folder, setting, captions, device)})
    table("right on held-out captions", [("", *SHARES)] + [(n, *(f"{r[k]:.3f}" for k in SHARES)) for n, r in found.items()])
    return found


def main() -> None:
    p = parser(__doc__, 0.0)
    p.add_argument("--captions", type=int, default=200)
    p.add_argument("--model", type=Path, help="a folder with a model.yaml; default: the run's export")
    p.add_argument("--rows", type=int, default=len(SETTINGS), help="how many settings of the shipped model")
    a = p.parse_args()
    found = run_all(options(a), captions=a.captions, model=a.model, rows=a.rows)
    print(json.dumps(found, indent=1) if parallel.lead() else "", end="")
    parallel.finish()


if __name__ == "__main__":
    main()
