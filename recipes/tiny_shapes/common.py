"""What the stages share: options, the time budget, curves, checkpoints and weight files."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.config import FULL, SMALL, Sizes

SHARD_BYTES = 14 << 20
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Options:
    """The options every stage takes. `out` holds one folder per stage."""

    out: Path
    minutes: float
    resume: bool = False
    smoke: bool = False
    device: str = "auto"
    compile: bool = True
    batch: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.compile = self.compile and self.device == "cuda"

    @property
    def sizes(self) -> Sizes:
        return SMALL if self.smoke else FULL

    def pick(self, full: int, small: int, quick: int | None = None) -> int:
        """`full`, `small` in a smoke run, or `quick` (if given) where the whole stage has under 90 seconds."""
        if self.smoke:
            return small
        return quick if quick is not None and self.minutes < 1.5 else full


def parser(doc: str | None, minutes: float) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder with one folder per stage")
    p.add_argument("--minutes", type=float, default=minutes, help="time for the whole stage, start-up included")
    p.add_argument("--resume", action="store_true", help="go on from this stage's checkpoint")
    p.add_argument("--smoke", action="store_true", help="a few steps at toy size")
    p.add_argument("--device", default="auto")
    p.add_argument("--no-compile", dest="compile", action="store_false")
    p.add_argument("--batch", type=int, default=0, help="0: the stage's own")
    p.add_argument("--seed", type=int, default=0)
    return p


def options(args: argparse.Namespace) -> Options:
    """The shared part of parsed arguments."""
    return Options(**{k: v for k, v in vars(args).items() if k in Options.__dataclass_fields__})


def prepare(o: Options) -> torch.device:
    """Settings of torch for this process, and its device."""
    device = parallel.start(o.device)
    torch.manual_seed(parallel.own_seed(o.seed))
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if o.compile:  # importing it takes seconds
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = 128
        dynamo.accumulated_recompile_limit = 1024
    if o.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(2, os.cpu_count() or 1) // parallel.world()))
    return device


class Compiled:
    """A function compiled for each set of shapes it meets; the plain function from the first time that compiling fails."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.plain, self.broken = fn, False
        self.fast = torch.compile(fn, dynamic=False)

    def __call__(self, *args: Any) -> Any:
        if self.broken:
            return self.plain(*args)
        try:
            return self.fast(*args)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as e:  # noqa: BLE001 - whatever the compiler trips over, plain code still trains
            self.broken = True
            print(f"compiling {self.plain.__name__} failed, going on without: {type(e).__name__}: {str(e)[:300]}", flush=True)
            return self.plain(*args)


def load_compile_cache(path: Path) -> None:
    """Take over compiled kernels that `save_compile_cache` wrote on a machine of the same kind."""
    if path.exists() and torch.cuda.is_available():
        torch.compiler.load_cache_artifacts(path.read_bytes())


def save_compile_cache(path: Path) -> int:
    """Write the kernels compiled so far; returns the number of bytes."""
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved[0])
    return len(saved[0])


def autocast(device: torch.device | str) -> torch.autocast:
    """bf16 on accelerators; float32 on the CPU."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu")


class Run:
    """One stage: its folder, clock, curve and checkpoint."""

    def __init__(self, stage: str, o: Options) -> None:
        self.stage, self.o = stage, o
        self.folder = o.out / stage
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begin = time.monotonic()
        self.before = 0.0
        self.step = 0
        self.curve = self.folder / "curve.jsonl"
        self.saved: dict[str, Any] | None = None
        if o.resume and self.checkpoint.exists():
            self.saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.before, self.step = self.saved["elapsed"], self.saved["step"]
            self.say(f"resumed at step {self.step}, {self.before:.0f} s in")
        elif parallel.lead():
            self.curve.unlink(missing_ok=True)
        self.now = self.before  # the time at the last step, the same in all processes

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.begin

    def say(self, text: str) -> None:
        if parallel.lead():
            print(f"[{self.stage} {self.elapsed:6.1f}s] {text}", flush=True)

    def steps(self, *, reserve: float = 0.0, smoke: int = 3) -> Iterator[float]:
        """Yield the share of time used, step by step, until only `reserve` seconds of the budget are left."""
        total = max(self.o.minutes * 60 - reserve, 1.0)
        start = self.step
        while True:
            self.now = parallel.agree_number(self.elapsed)
            done = self.now / total
            if self.o.smoke:
                done = (self.step - start) / smoke
            if done >= 1.0:
                return
            yield done
            self.step += 1

    def log(self, every: int = 20, **values: Tensor | float) -> None:
        """Append a row to the curve on every `every`-th step; reading the values also keeps the device queue short."""
        if (self.step % every and not self.o.smoke) or not parallel.lead():
            return
        row = {"step": self.step, "seconds": round(self.elapsed, 2)}
        numbers = {k: v.item() if isinstance(v, Tensor) else float(v) for k, v in values.items()}
        row.update(numbers)
        with self.curve.open("a") as f:
            f.write(json.dumps(row) + "\n")
        if self.step % (every * 10) == 0 or self.o.smoke:
            self.say(f"step {self.step} " + " ".join(f"{k} {v:.4g}" for k, v in numbers.items()))

    def save(self, **state: Any) -> None:
        if not parallel.lead():
            return
        partial = self.checkpoint.with_suffix(".tmp")
        torch.save({"step": self.step, "elapsed": self.elapsed, **state}, partial)
        partial.replace(self.checkpoint)

    def write(self, name: str, values: dict[str, Any]) -> None:
        """A stage's results as JSON; the other processes wait for it, since the next stage reads it."""
        if parallel.lead():
            (self.folder / name).write_text(json.dumps(values, indent=1) + "\n")
        parallel.barrier()

    def plot(self, title: str) -> None:
        """All logged values over time, one panel each."""
        if not parallel.lead():
            return
        rows = [json.loads(line) for line in self.curve.read_text().splitlines()] if self.curve.exists() else []
        if not rows:
            return
        try:
            import matplotlib
        except ImportError:
            self.say("no plot: matplotlib is not installed")
            return
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        keys = [k for k in {k: None for row in rows for k in row} if k not in ("step", "seconds")]
        fig, axes = plt.subplots(1, len(keys), figsize=(3.6 * len(keys), 3), squeeze=False)
        for axis, key in zip(axes[0], keys, strict=True):
            points = [(r["seconds"], r[key]) for r in rows if key in r]
            axis.plot(*zip(*points, strict=True), linewidth=1)
            axis.set_title(key)
            axis.set_xlabel("seconds")
            if min(p[1] for p in points) > 0 and max(p[1] for p in points) > 20 * min(p[1] for p in points):
                axis.set_yscale("log")
        fig.suptitle(title)
        fig.tight_layout()
        fig.savefig(self.folder / "curve.png", dpi=90)
        plt.close(fig)


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print rows as columns."""
    if not parallel.lead():
        return
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    print(f"\n{title}", flush=True)
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip(), flush=True)


def save_weights(folder: Path, name: str, state: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> list[Path]:
    """Write `name.safetensors`, or numbered shards of at most 14 MiB each. Floats become `dtype`."""
    if not parallel.lead():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}*.safetensors"):
        old.unlink()
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().cpu() for k, v in state.items()}
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for key, value in tensors.items():
        if shards[-1] and value.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][key] = value
        room -= value.nbytes
    paths = []
    for i, shard in enumerate(shards, 1):
        suffix = f"-{i:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        paths.append(folder / f"{name}{suffix}.safetensors")
        save_file(shard, paths[-1])
    return paths


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Read what `save_weights` wrote, as float32."""
    paths = sorted(folder.glob(f"{name}.safetensors")) + sorted(folder.glob(f"{name}-*.safetensors"))
    if not paths:
        raise SystemExit(f"no {name}*.safetensors in {folder}: run the stage that makes it first")
    return {k: v.float() if v.is_floating_point() else v for p in paths for k, v in load_file(p).items()}


def load_into(model: nn.Module, folder: Path, name: str, *, extra: tuple[str, ...] = ()) -> None:
    """Load weights; keys of the model that contain one of `extra` may be missing."""
    missing, unexpected = model.load_state_dict(load_weights(folder, name), strict=False)
    missing = [k for k in missing if not any(e in k for e in extra)]
    if missing or unexpected:
        raise SystemExit(f"{folder}/{name}: missing {missing[:5]}, unexpected {unexpected[:5]}")
