"""Measures every hot loop for a moment, then runs every stage for a few seconds: what to expect before a long run.

Prints step times, throughputs, memory and the time spent compiling. With --stages-only or --timings-only, one half of it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from recipes.tiny_shapes import distill, finetune, teacher, text_train, vae_train
from recipes.tiny_shapes.captured import Captured, Pool
from recipes.tiny_shapes.common import Options, autocast, load_compile_cache, options, parser, prepare, save_compile_cache, table
from recipes.tiny_shapes.config import Sizes
from recipes.tiny_shapes.data import PixelPool, draw_scenes, vocabulary_size
from recipes.tiny_shapes.losses import Distiller
from recipes.tiny_shapes.nets import DENSE, Dit, Mode
from recipes.tiny_shapes.optim import Optimisers, split, split_kernels
from recipes.tiny_shapes.textnet import TextEncoder
from recipes.tiny_shapes.vaenet import Vae

ROWS: list[tuple[str, ...]] = [("what", "ms", "clips/s", "GiB", "first call s")]


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(name: str, fn: Callable[[], Any], clips: int, *, seconds: float = 0.8) -> None:
    """Time `fn` after a first and two more calls; a failure becomes a row of the table."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        begin = time.monotonic()
        fn()
        sync()
        first = time.monotonic() - begin
        for _ in range(2):
            fn()
        sync()
        begin, count = time.monotonic(), 0
        while time.monotonic() - begin < seconds:
            fn()
            count += 1
            if count % 4 == 0:
                sync()
        sync()
        each = (time.monotonic() - begin) / count
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        row = (name, f"{each * 1e3:.1f}", f"{clips / each:.0f}", f"{memory:.1f}", f"{first:.1f}")
    except Exception as e:  # noqa: BLE001 - one loop that fails must not hide the others
        traceback.print_exc()
        row = (name, "failed", type(e).__name__, str(e)[:60])
    ROWS.append(row)
    print("  ".join(row), flush=True)


def vae_rows(o: Options, s: Sizes, device: torch.device) -> None:
    pool = PixelPool(s, o.pick(256, 4), device, 0)
    measure("render 64 clips", lambda: PixelPool(s, o.pick(64, 2), device, 1), o.pick(64, 2))
    for name, last, fast, frames, batch in (
        ("vae step 33x8 channels-last", True, False, 33, 8),
        ("vae step 33x8 channels-last compiled", True, o.compile, 33, 8),
        ("vae step 33x4 channels-last compiled", True, o.compile, 33, 4),
    ):
        vae = Vae(s).to(device)
        if last:
            vae.channels_last()
        vae.compiled(fast)
        kernels, rest = split_kernels(vae, vae_train.PLAIN_LAYERS)
        opt = Optimisers(kernels, rest, muon_lr=1e-4, lr=1e-4)
        frames, batch = min(frames, s.frames), o.pick(batch, 2)

        def step(vae: Vae = vae, opt: Optimisers = opt, frames: int = frames, batch: int = batch) -> None:
            with autocast(device):
                loss, _ = vae_train.vae_loss(vae, pool.sample(batch, frames))
            loss.backward()
            opt.step(1.0)

        measure(name, step, batch)
    vae = Vae(s).to(device).requires_grad_(False)
    for name, last, fast in (("channels-last", True, False), ("channels-last compiled", True, o.compile)):
        if last:
            vae.channels_last()
        vae.compiled(fast)
        n = o.pick(32, 2)
        video = pool.clips[:n].float().div(127.5).sub(1)
        latents = torch.randn(n, *s.latent, device=device)

        def coded(fn: Callable[[Any], Any], x: torch.Tensor) -> None:
            with torch.no_grad(), autocast(device):
                fn(x)

        measure(f"encode 32 {name}", lambda v=vae, x=video: coded(v.encode, x), n, seconds=0.6)
        measure(f"decode 32 {name}", lambda v=vae, x=latents: coded(v.decode, x), n, seconds=0.6)


def dit_rows(o: Options, s: Sizes, device: torch.device) -> None:
    text = TextEncoder(s, vocabulary_size()).to(device)
    ids = torch.from_numpy(draw_scenes(64, 0, s.text_len)[1][:, 0]).to(device)

    text.requires_grad_(False)
    ids = ids.repeat(3, 1)

    def passes(dit: Dit, batch: int, mode: Mode) -> tuple[torch.Tensor]:
        with autocast(device):
            context = text(ids[:batch])
            x = torch.randn(batch, *s.latent, device=device)
            loss = dit(x, torch.rand(batch, device=device), context, mode).square().mean()
        loss.backward()
        return (loss.detach(),)

    sla = Mode(topk=0.1, linear="w8a8", int8=True)
    for name, batch, fast, recorded, mode in (
        ("dit step 96 plain", 96, False, False, DENSE),
        ("dit step 96 compiled", 96, o.compile, False, DENSE),
        ("dit step 96 recorded", 96, o.compile, o.compile, DENSE),
        ("dit step 192 recorded", 192, o.compile, o.compile, DENSE),
        ("dit step 96 SLA int8 compiled", 96, o.compile, False, sla),
        ("dit step 48 SLA int8 recorded", 48, o.compile, o.compile, sla),
        ("dit step 96 SLA int8 recorded", 96, o.compile, o.compile, sla),
    ):
        dit = Dit(s, sla=mode is sla).to(device).compiled(fast)
        opt = Optimisers(*split(dit), muon_lr=1e-4, lr=1e-4, keep_grads=True)
        n = o.pick(batch, 2)
        both = Captured(partial(passes, dit, n, mode), Pool(recorded))

        def step(both: Captured = both, opt: Optimisers = opt) -> None:
            both()
            opt.step(1.0)

        measure(name, step, n)
        if recorded and batch == 96:
            kernels(name, step)
    distillation_rows(o, s, device)


def distillation_rows(o: Options, s: Sizes, device: torch.device) -> None:
    """The three passes of the student's stage, each after four sampler steps."""
    teacher, student, fake = (Dit(s).to(device).compiled(o.compile) for _ in range(3))
    teacher.requires_grad_(False)
    for net in (student, fake):
        Optimisers([], list(net.parameters()), muon_lr=0, lr=1e-4, keep_grads=True)
    n = o.pick(48, 2)
    d = Distiller(student, teacher, fake, 2.0, torch.randn(1, s.text_len, s.text_dim, device=device))
    text, x0 = torch.randn(n, s.text_len, s.text_dim, device=device), torch.randn(n, *s.latent, device=device)
    graphs = Pool(o.compile)
    for name, fn in (
        ("tracker pass 48", lambda: d.fake_loss(text, s.latent, 4)),
        ("score distillation pass 48", lambda: d.dmd_loss(text, s.latent, 4)),
        ("consistency pass 48", lambda: d.scm_loss(x0, text, 1.0)),
    ):

        def passes(fn: Callable[[], torch.Tensor] = fn) -> tuple[torch.Tensor]:
            loss = fn()
            loss.backward()
            return (loss.detach(),)

        measure(name, Captured(passes, graphs), n)


def kernels(name: str, step: Callable[[], Any], top: int = 14) -> None:
    """Print where the device's time of three steps goes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(3):
            step()
        sync()
    rows = sorted(p.key_averages(), key=lambda r: -r.self_device_time_total)
    total = sum(r.self_device_time_total for r in rows)
    print(f"{name}: {total / 3e3:.1f} ms of kernels a step")
    for r in rows[:top]:
        print(f"  {r.self_device_time_total / 3e3:7.2f} ms {r.count / 3:5.0f} x  {r.key[:110]}", flush=True)


def host_rows(o: Options) -> None:
    from recipes.tiny_shapes.scoring import judge_one

    scenes, _ = draw_scenes(64, 3, 32)
    from recipes.tiny_shapes.render import render, to_uint8

    frames = to_uint8(render(scenes[:4], 33, 128)).numpy()
    measure("captions of 64 clips, one process", lambda: draw_scenes(64, 4, 32), 64, seconds=0.5)
    measure("judge one clip, one process", lambda: judge_one(np.asarray(frames[0]), scenes[0]), 1, seconds=0.5)


def stage_rows(o: Options) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("stage", "seconds", "result")]
    quick = replace(o, out=o.out / "shakedown")
    for name, run, minutes in (
        ("text", text_train.train, 0.3),
        ("vae", vae_train.train, 0.35),
        ("teacher", teacher.train, 0.55),
        ("student", distill.train, 0.55),
        ("sla", finetune.train, 0.35),
    ):
        begin = time.monotonic()
        try:
            result = str(run(replace(quick, minutes=minutes)))[:160]
        except Exception as e:  # noqa: BLE001 - the later stages must run too
            traceback.print_exc()
            result = f"FAILED {type(e).__name__}: {str(e)[:120]}"
        rows.append((name, f"{time.monotonic() - begin:.0f}", result))
    return rows


def main() -> None:
    p = parser(__doc__, 0.0)
    p.add_argument("--timings-only", action="store_true")
    p.add_argument("--stages-only", action="store_true")
    args = p.parse_args()
    o = options(args)
    device, s = prepare(o), o.sizes
    load_compile_cache(o.out / "compile_cache.bin")
    if not args.stages_only:
        vae_rows(o, s, device)
        dit_rows(o, s, device)
        host_rows(o)
    stages = [] if args.timings_only else stage_rows(o)
    table("timings", ROWS)
    if stages:
        table("stages", stages)
    if o.compile:
        print(f"compile cache: {save_compile_cache(o.out / 'compile_cache.bin') / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
