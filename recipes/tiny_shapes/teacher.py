"""Stage 2: train the teacher, a flow-matching transformer.

x_t = (1 - t) x0 + t eps, target velocity eps - x0, mean squared error. Times are logit-normal with the schedule's shift,
one in eight uniform. One caption in ten is empty, for guidance. Latents come from a pool that grows while training runs.
`--resume` without a checkpoint goes on from the weights of an earlier run, with fresh optimisers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.captured import Captured, Pool
from recipes.tiny_shapes.common import Options, Run, autocast, load_into, options, parser, prepare, save_weights, table
from recipes.tiny_shapes.config import SHIFT, TEACHER_STEPS, Sizes
from recipes.tiny_shapes.data import LatentPool, vocabulary_size
from recipes.tiny_shapes.nets import Dit
from recipes.tiny_shapes.optim import Ema, Optimisers, schedule, split
from recipes.tiny_shapes.rates import Rates, try_rates
from recipes.tiny_shapes.scoring import Model, Recipe, contact_sheet, score
from recipes.tiny_shapes.textnet import TextEncoder
from recipes.tiny_shapes.vae_train import load_vae

BATCH = 192  # over all processes
LEAST = 96  # of one process
RATES = ((2e-3, 1e-3),)  # peak rates of (Muon, AdamW); several are tried first
TRIAL = 200  # steps of each try
DROP = 0.1
POOL = 49152
FIRST = 6144  # clips in the pool before training starts
GUIDANCE = (2.0, 1.5, 3.0)  # tried on training captions; the best becomes the teacher's


def draw_times(batch: int, device: torch.device) -> Tensor:
    """[batch] in (0, 1): logit-normal with the schedule's shift, one in eight uniform."""
    u = torch.sigmoid(torch.randn(batch, device=device))
    t = SHIFT * u / (1 + (SHIFT - 1) * u)
    return torch.where(torch.rand(batch, device=device) < 0.125, torch.rand(batch, device=device), t)


def drop_captions(ids: Tensor, null: Tensor, share: float) -> Tensor:
    return torch.where(torch.rand(len(ids), 1, device=ids.device) < share, null, ids)


def flow_loss(dit: Any, text: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of the velocity, one value per clip."""
    eps = torch.randn_like(x0)
    at = t.view(-1, 1, 1, 1, 1)
    v = dit((1 - at) * x0 + at * eps, t, text)
    return (v - (eps - x0)).square().mean((1, 2, 3, 4))


def load_text(out: Path, s: Sizes, device: torch.device) -> TextEncoder:
    """The trained text encoder."""
    text = TextEncoder(s, vocabulary_size()).to(device)
    load_into(text, out / "text", "text")
    return text.eval().requires_grad_(False)


def load_teacher(out: Path, s: Sizes, device: torch.device, *, compile: bool) -> tuple[Dit, TextEncoder, float]:
    """Teacher, text encoder and the guidance chosen for it."""
    dit = Dit(s).to(device)
    load_into(dit, out / "teacher", "dit")
    info = json.loads((out / "teacher" / "teacher.json").read_text())
    return dit.eval().requires_grad_(False).compiled(compile), load_text(out, s, device), float(info["guidance"])


def train(o: Options) -> dict[str, Any]:
    device = prepare(o)
    run, s = Run("teacher", o), o.sizes
    batch = parallel.per_process(o.batch or o.pick(BATCH, 4), least=o.pick(LEAST, 2))
    vae = load_vae(o.out, s, device, compile=o.compile)
    size = parallel.per_process(o.pick(POOL, 16, 2048))
    pool = LatentPool(s, vae, size, device, parallel.own_seed(o.seed), chunk=o.pick(512, 8))
    dit, text = Dit(s).to(device).compiled(o.compile), load_text(o.out, s, device)

    def optimisers(rates: Rates) -> Optimisers:
        return Optimisers(*split(dit), muon_lr=rates[0], lr=rates[1], keep_grads=True)

    def passes(x0: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward; (loss per clip, times)."""
        t = draw_times(batch, device)
        with autocast(device):
            each = flow_loss(dit, text(drop_captions(ids, pool.null, DROP)), x0, t)
        each.mean().backward()
        return each.detach(), t

    both = Captured(passes, Pool(o.compile))

    def update(opt: Optimisers, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """One step; (loss per clip, times, gradient norm)."""
        each, t = both(*pool.sample(batch))
        return each, t, opt.step(rate)

    while pool.size < parallel.per_process(o.pick(FIRST, 8, 1024)):
        pool.grow()
    run.say(f"{sum(p.numel() for p in dit.parameters())} parameters, batch {batch}, {pool.size} clips to start with")
    if run.saved:
        dit.load_state_dict(run.saved["model"])
        rates = tuple(run.saved["rates"])
    else:
        if o.resume and (o.out / "teacher" / "teacher.json").is_file():
            load_into(dit, o.out / "teacher", "dit")
        rates = try_rates(run, dit, RATES, optimisers, lambda opt, rate: update(opt, rate)[0].mean(), o.pick(TRIAL, 2, 10))
    opt, ema = optimisers(rates), Ema(dit, 0.999)
    if run.saved:
        opt.load(run.saved["opt"])
        ema.load(run.saved["ema"])
    begun = run.step
    for done in run.steps(reserve=o.pick(25, 0)):
        if run.step % 20 == 0:
            pool.grow()
        each, t, norm = update(opt, schedule(run.step - begun, done, warmup=200, hold=0.45))
        ema.update()
        noisy = (t > 0.85).float()
        noisy_loss = (each * noisy).sum() / noisy.sum().clamp_min(1)
        run.log(loss=each.mean(), noisy_loss=noisy_loss, norm=norm, clips=pool.size)
        if run.step % 3000 == 2999:
            run.save(model=dit.state_dict(), opt=opt.state(), ema=ema.state(), rates=rates)
    run.save(model=dit.state_dict(), opt=opt.state(), ema=ema.state(), rates=rates)
    dit.load_state_dict(ema.state(), strict=False)
    dit.eval().requires_grad_(False)
    save_weights(run.folder, "dit", dit.state_dict())
    model = Model(s, text, dit, vae, device)
    steps, count = o.pick(TEACHER_STEPS, 2), o.pick(48, 2)
    together = parallel.per_process(count)  # one shape for all scores, so that they share what was compiled
    tried = {
        g: score(model, Recipe("euler", steps, g), count, held_out=False, seed=3, batch=together)
        for g in GUIDANCE[: o.pick(3, 3, 1)]
    }
    best = max(tried, key=lambda g: (tried[g]["right"], -g))

    def sheet(*args: Any) -> None:
        contact_sheet(run.folder / "samples.png", *args)

    recipe = Recipe("euler", steps, best)
    held = score(model, recipe, o.pick(200, 2, 48), held_out=True, seed=1, sink=sheet, batch=together)
    result = {"guidance": best, "tried": {str(g): r for g, r in tried.items()}, "held_out": held, "steps": run.step,
              "seconds": run.elapsed, "samples": run.step * batch * parallel.world(),
              "apart": parallel.disagreement(dit.parameters())}  # fmt: skip
    run.write("teacher.json", result)
    run.plot("teacher")
    table("teacher", [("guidance", "captions", "right", "color", "shape", "motion")]
          + [(str(g), "training", *(f"{r[k]:.3f}" for k in ("right", "color", "shape", "motion"))) for g, r in tried.items()]
          + [(str(best), "held out", *(f"{held[k]:.3f}" for k in ("right", "color", "shape", "motion"))),
             ("steps", str(run.step)), ("seconds", f"{run.elapsed:.0f}")])  # fmt: skip
    return result


if __name__ == "__main__":
    train(options(parser(__doc__, 8.5).parse_args()))
