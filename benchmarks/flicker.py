"""Do scales shared along time reduce flicker, and what jitter of scales does the temporal gate see?

    OMP_NUM_THREADS=1 python -m benchmarks.flicker scales [--count 16] [--out FILE]
    OMP_NUM_THREADS=1 python -m benchmarks.flicker sites  [--count 16] [--out FILE]
    OMP_NUM_THREADS=1 python -m benchmarks.flicker jitter [--count 2]  [--out FILE]

`scales`: every 8-bit activation of the transformer's blocks with a scale per token, shared along time, and with the maxima of the
step before (shared, but known in time for a single pass); at w8a8, at w4a8 and with activations of 4 bits, which no precision of
turbort has and which shows what coarser steps do. INT8 attention with a scale per block, and with one for all frames.
`sites`: sharing at one kind of site only, the others per token. `jitter`: the smallest amplitude of scale jitter in one linear
that the temporal gate catches. Numbers are those of `turbort verify`, against the unquantised run from the same noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import commit, describe_machine
from turbort.job import Job
from turbort.models.spec import get_model
from turbort.op import slots
from turbort.ops.attention_int8 import quantise_rows
from turbort.plan import Plan
from turbort.planner import find_target, make_plan
from turbort.profile import Profile, load_profile
from turbort.quality.baseline import baseline_plan, baseline_profile
from turbort.quality.gates import ratio
from turbort.quality.metrics import psnr
from turbort.quality.temporal import Temporal, temporal
from turbort.quant.int8 import TOKEN_FLOOR
from turbort.quant.qtensor import QTensor
from turbort.registry import Registry
from turbort.session import Session
from turbort.testing.jitter import gains, jitter

CAPTIONS = (
    "a red circle moves right",
    "a blue star moves up",
    "a green square moves left",
    "a yellow triangle moves down",
    "a red square rotates clockwise",
    "a blue circle bounces",
    "a green triangle moves diagonally up and right",
    "a yellow star grows",
    "a red triangle moves left",
    "a blue square moves down",
    "a green circle shrinks",
    "a yellow square moves right",
    "a red star moves up and a blue circle moves left",
    "a green star bounces",
    "a blue triangle rotates clockwise",
    "a yellow circle moves diagonally down and left",
)
MEASURES = ("warp", "flicker", "latent")
KINDS = ("norm1", "self_attn.o", "norm3", "cross_attn.o", "norm2", "ffn.gelu")
"""Sites that quantise: before q, k and v; self-attention's output; before the cross-attention's q; its output; the FFN's two."""
LADDER = (0.02, 0.028, 0.04, 0.056, 0.08, 0.11, 0.16, 0.22, 0.32, 0.45, 0.63, 0.9)



def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("part", choices=("scales", "sites", "jitter"))
    p.add_argument("--model", default="tiny")
    p.add_argument("--count", type=int, help="captions (16; for jitter 2)")
    p.add_argument("--out", type=Path, help="default: benchmarks/results/flicker_PART.json")
    p.add_argument("--keep", type=Path, metavar="DIR", help="keep videos there, and do not make those again that are there")
    args = p.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.model, args.count or (2 if args.part == "jitter" else 16), args.keep)
    rows = {"scales": scales, "sites": by_site, "jitter": jitters}[args.part](bench)
    document = {
        "benchmark": f"flicker {args.part}",
        "commit": commit(),
        "machine": describe_machine(),
        "model": args.model,
        "captions": bench.captions,
        "gate": bench.profile.quality.temporal,
        "rows": rows,
    }
    out = args.out or Path(__file__).parent / "results" / f"flicker_{args.part}.json"
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


class Bench:
    """The unquantised videos of some captions, and quantised ones against them."""

    def __init__(self, model: str, count: int, keep: Path | None = None) -> None:
        self.spec, self.registry, self.profile = get_model(model), Registry(), load_profile("cpu")
        self.target = find_target(self.profile, self.registry)
        self.captions, self.keep = CAPTIONS[:count], keep
        self.frames = self.spec.token_grid(*self._size)[0]
        plain = baseline_plan(self.plan(self.profile), self.profile)
        with Session.open(self.spec, baseline_profile(self.profile), registry=self.registry, plan=plain) as session:
            self.before = {caption: self._video(session, caption, "unquantised") for caption in self.captions}
        self.steadiness = {caption: self._temporal(video) for caption, video in self.before.items()}

    @property
    def _size(self) -> tuple[int, int, int]:
        d = self.spec.defaults
        return d.width, d.height, d.frames

    def plan(self, profile: Profile) -> Plan:
        return make_plan(self.spec, profile, self.registry, target=self.target)

    def profile_of(self, linear: str, *, attention: str = "fp32", shared: bool = True) -> Profile:
        """The CPU profile at these precisions, with nothing promoted on the way."""
        words = self.profile.precision
        least = words.linear.model_copy(update={"max": linear, "min": linear})
        scales = "time" if shared else "token"
        precision = words.model_copy(update={"linear": least, "attention": attention, "activation_scales": scales})
        monitor = self.profile.monitor.model_copy(update={"on_outlier": "ignore"})
        return self.profile.model_copy(update={"precision": precision, "monitor": monitor})

    def open(self, profile: Profile) -> Session:
        return Session.open(self.spec, profile, registry=self.registry, plan=self.plan(profile))

    def _video(self, session: Session, caption: str, name: str) -> np.ndarray:
        """Frames from noise of seed 0; kept as `name` and not made again where videos are kept."""
        file = self.keep / f"{name}, {caption}.npz" if self.keep else None
        if file is not None and file.is_file():
            found: np.ndarray = np.load(file)["frames"]
            return found
        frames: np.ndarray = session.generate([Job(caption, seed=0)])[0].frames
        if file is not None:
            np.savez_compressed(file, frames=frames)
        return frames

    def _temporal(self, video: np.ndarray) -> Temporal:
        return temporal(video, self.spec.vae.stride[0])

    def judged(self, session: Session, name: str, begin: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """PSNR and the three temporal ratios over all captions; `name` is the run's, `begin` is called before every video."""
        found = []
        for caption in self.captions:
            begin()
            video = self._video(session, caption, name)
            after, before = self._temporal(video), self.steadiness[caption]
            ratios = [ratio(getattr(after, name), getattr(before, name)) for name in MEASURES]
            found.append([psnr(self.before[caption], video), *ratios])
        table = np.array(found)
        rows = {
            measure: {"mean": round(float(table[:, i].mean()), 4), "highest": round(float(table[:, i].max()), 4)}
            for i, measure in enumerate(MEASURES, start=1)
        }
        lowest, mean = float(table[:, 0].min()), float(table[:, 0].mean())
        return {"psnr": {"mean": round(mean, 2), "lowest": round(lowest, 2)}, **rows}


def codes(x: Tensor, most: Tensor, top: int, emit: str) -> QTensor:
    """int8 tokens for maxima [B, L, 1]; what is beyond them saturates."""
    scale = most.clamp_min(TOKEN_FLOOR) / top
    return QTensor(emit, (x.float() / scale).round_().clamp_(-top, top).to(torch.int8), scale.contiguous(), x.dtype)


def shared_most(x: Tensor, frames: int) -> Tensor:
    """Maxima of the places over all frames, [B, L, 1]."""
    most = x.float().abs().amax(-1).view(x.shape[0], frames, -1).amax(1, keepdim=True)
    return most.expand(-1, frames, -1).reshape(x.shape[0], -1, 1)


class Variant:
    """Stands in for one quantiser: `token`, `time` or `previous` scales, with codes up to `top`."""

    def __init__(self, kind: str, top: int) -> None:
        self.kind, self.top = kind, top
        self._last: Tensor | None = None

    def reset(self) -> None:
        """A new video: no step before."""
        self._last = None

    def __call__(self, x: Tensor, *, emit: str, frames: int) -> QTensor:
        if self.kind == "token":
            return codes(x, x.float().abs().amax(-1, keepdim=True), self.top, emit)
        now = shared_most(x, frames)
        last, self._last = self._last, now
        return codes(x, now if self.kind == "time" or last is None else last, self.top, emit)


def measured(bench: Bench, session: Session, name: str, kind_of: Callable[[str], str], top: int) -> dict[str, Any]:
    """The numbers with every quantiser of the transformer of the kind that `kind_of(path)` says."""
    variants = []
    for path, slot in session.model(session.roles[0]).tokens.quantisers.items():
        slot.fn = Variant(kind_of(path), top)
        variants.append(slot.fn)

    def begin() -> None:
        for variant in variants:
            variant.reset()

    return bench.judged(session, name, begin)


def scales(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for name, linear, top, kinds in (
        ("w8a8", "w8a8", 127, ("token", "time", "previous")),
        ("w4a8", "w4a8", 127, ("token", "time")),
        ("w8, activations of 4 bits", "w8a8", 7, ("token", "time")),
    ):
        with bench.open(bench.profile_of(linear)) as session:
            for kind in kinds:
                row = measured(bench, session, f"{name} {kind}", lambda _, kind=kind: kind, top)  # type: ignore[misc]
                rows.append(told({"precision": name, "scales": kind, **row}))
    with bench.open(bench.profile_of("fp32", attention="int8", shared=False)) as session:
        rows.append(told({"precision": "attention int8", "scales": "block", **bench.judged(session, "attention block")}))
        with patch("turbort.ops.sla_sparse.quantise_rows", rows_shared(bench.spec.token_grid(*bench._size))):
            rows.append(told({"precision": "attention int8", "scales": "time", **bench.judged(session, "attention time")}))
    return rows


def rows_shared(grid: tuple[int, int, int]) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """`quantise_rows` with a scale for the blocks of a place in all frames; whole frames must be whole blocks, or the reverse."""
    places = grid[1] * grid[2]

    def run(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        if places % rows and rows % places:
            raise SystemExit(f"blocks of {rows} rows do not lie at the same places in every frame of {places} tokens")
        scale = quantise_rows(x, rows)[1]
        by_frame = scale.unflatten(-2, (-1, places if rows <= places else 1))
        scale = by_frame.amax(-3, keepdim=True).expand_as(by_frame).flatten(-3, -2)
        return (x.float() / scale).round().clamp(-127, 127), scale

    return run


def by_site(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    with bench.open(bench.profile_of("w8a8")) as session:
        for name, top in (("w8a8", 127), ("w8, activations of 4 bits", 7)):
            for site in ("none", *KINDS):

                def kind_of(path: str, site: str = site) -> str:
                    return "time" if f".{site}." in f".{path}." else "token"

                row = measured(bench, session, f"{name} token" if site == "none" else f"{name} at {site}", kind_of, top)
                rows.append(told({"precision": name, "shared at": site, **row}))
    return rows


def jitters(bench: Bench) -> list[dict[str, Any]]:
    """Per linear and kind of jitter, the smallest rung of the ladder at which a temporal number is over the gate."""
    last, middle = bench.spec.dit.layers - 1, bench.spec.dit.layers // 2
    sites = ("head.head", f"blocks.{last}.ffn.2", f"blocks.{middle}.ffn.2")
    rows = []
    with bench.open(bench.profile_of("w8a8", shared=False)) as session:
        rows.append(told({"linear": "none", "jitter": "none", "amplitude": 0.0, **bench.judged(session, "w8a8 token")}))
        for site in sites:
            for kind, seed in (("alternating", None), ("random", 0)):
                rows.append(told({"linear": site, "jitter": kind, **smallest(bench, session, site, seed)}))
    return rows


def smallest(bench: Bench, session: Session, site: str, seed: int | None) -> dict[str, Any]:
    """The first rung that the gate catches by bisection, its numbers, and those of the same gain in all frames."""
    low, high, found = 0, len(LADDER), None
    while low < high:
        rung = (low + high) // 2
        name = f"{'alternating' if seed is None else 'random'} {LADDER[rung]} at {site}"
        row = shaken(bench, session, name, site, gains(bench.frames, LADDER[rung], seed))
        if any(row[name]["highest"] > bench.profile.quality.temporal for name in MEASURES):
            high, found = rung, row
        else:
            low = rung + 1
    if found is None:
        return {"amplitude": None, "note": f"not caught up to {LADDER[-1]}", **row}
    steady = shaken(bench, session, f"steady {LADDER[high]} at {site}", site, [1 + LADDER[high]] * bench.frames)
    return {"amplitude": LADDER[high], **found, "steady gain": {name: steady[name] for name in ("psnr", *MEASURES)}}


def shaken(bench: Bench, session: Session, name: str, site: str, factors: Sequence[float]) -> dict[str, Any]:
    with jitter(slots(session.model(session.roles[0]))[f"{site}.op"], factors):
        return bench.judged(session, name)


def told(row: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in row.items() if key != "steady gain"}
    shown = {key: list(value.values()) if isinstance(value, dict) else value for key, value in plain.items()}
    print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
    return row


if __name__ == "__main__":
    main()
