"""Stage 3: distil the teacher into a student of four steps (rCM).

First the student regresses the end points of the teacher's guided flow from points along it, which is stable and puts it
in the right place. Then it trains on the rCM objective: consistency with forward-mode tangents, plus score distillation
on its own samples after 1 to 4 sampler steps. If the consistency loss stops being finite or the student gets worse with
it, that term is dropped (`scm` in the curve becomes 0). The average with the best score on training captions is kept.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.captured import Captured, Pool
from recipes.tiny_shapes.common import Options, Run, autocast, load_into, options, parser, prepare, save_weights, table
from recipes.tiny_shapes.config import Sizes
from recipes.tiny_shapes.data import CaptionPool, LatentPool
from recipes.tiny_shapes.losses import Distiller, trajectories
from recipes.tiny_shapes.nets import DENSE, Dit, Mode
from recipes.tiny_shapes.optim import Ema, Optimisers, schedule
from recipes.tiny_shapes.scoring import Model, Recipe, contact_sheet, score
from recipes.tiny_shapes.teacher import load_teacher
from recipes.tiny_shapes.vae_train import load_vae

BATCH = 96
SCM_BATCH = 48
LR = 1e-4
WARM_LR = 5e-4
FAKE_LR = 1.5e-4
SCM_WEIGHT = 0.3
RAMP = 300  # updates until the consistency loss counts in full
FAKE_UPDATES = 3  # tracker updates per student update
WARM_SHARE = 0.25  # of the time, for making and regressing trajectories
TRAJECTORIES = 6144
CLIPS = 4096  # real clips for the consistency loss


class Keeper:
    """Scores averages of the student on training captions and keeps the best."""

    def __init__(self, run: Run, model: Model, ema: Ema, mode: Mode, count: int, batch: int) -> None:
        self.run, self.model, self.ema, self.mode, self.count, self.batch = run, model, ema, mode, count, batch
        self.best, self.state = -1.0, ema.state()
        self.last = 0.0

    def check(self, *, every: float, force: bool = False) -> float | None:
        """The score, at most every `every` seconds."""
        if not force and self.run.now - self.last < every:
            return None
        self.model.dit.load_state_dict(self.ema.state(), strict=False)
        recipe = Recipe("rcm", 4, mode=self.mode)
        value = score(self.model, recipe, self.count, held_out=False, seed=11, batch=self.batch)["right"]
        self.last = parallel.agree_number(self.run.elapsed)
        self.run.say(f"right on training captions: {value:.3f} (best so far {self.best:.3f})")
        if value >= self.best:
            self.best, self.state = value, self.ema.state()
        return value


def warm_start(d: Distiller, pool: CaptionPool, text: Any, s: Sizes, count: int, batch: int) -> tuple[Tensor, ...]:
    """Trajectories for `count` captions: states [K, N, ...], times [K], end points [N, ...], token ids [N, L]."""
    parts, times = [], []
    velocity = Captured(d.autocast_velocity, Pool(pool.ids.is_cuda and d.teacher.is_compiled))
    for _ in range(max(1, count // batch)):
        ids = pool.captions(batch)
        with torch.no_grad(), autocast(ids.device):
            states, times, end = trajectories(velocity, text(ids).float(), s.latent)
        parts.append((states, end, ids))
    states, ends, ids = (torch.cat([p[i] for p in parts], dim=1 if i == 0 else 0) for i in range(3))
    return states, torch.tensor(times, device=ids.device), ends, ids


def regression_loss(d: Distiller, text: Any, data: tuple[Tensor, ...], anchors: Tensor, batch: int) -> Tensor:
    """Mean squared error of the velocity that leads straight to the end of the teacher's path."""
    states, times, ends, ids = data
    device = ends.device
    clip = torch.randint(len(ends), (batch,), device=device)
    point = torch.randint(len(times), (batch,), device=device)
    chosen = anchors[torch.randint(4, (batch,), device=device)]  # half the draws fall on the four times that the sampler uses
    point = torch.where(torch.rand(batch, device=device) < 0.5, chosen, point)
    x, t = states[point, clip].float(), times[point]
    with autocast(device):
        with torch.no_grad():
            context = text(ids[clip])
        v = d.student(x, t, context, d.mode)
        return (v - (x - ends[clip]) / t.view(-1, 1, 1, 1, 1)).square().mean()


def add_arguments(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
    p.add_argument("--no-scm", dest="scm", action="store_false", help="score distillation alone")
    return p


def train(o: Options, *, scm: bool = True) -> dict[str, Any]:
    device = prepare(o)
    run, s = Run("student", o), o.sizes
    batch, half = parallel.per_process(o.batch or o.pick(BATCH, 2)), parallel.per_process(o.pick(SCM_BATCH, 2))
    vae = load_vae(o.out, s, device, compile=o.compile)
    teacher, text, guidance = load_teacher(o.out, s, device, compile=o.compile)
    student, fake, shown = (Dit(s).to(device).compiled(o.compile) for _ in range(3))
    for net in (student, fake, shown):
        net.load_state_dict(teacher.state_dict())
    shown.requires_grad_(False)
    captions = CaptionPool(s, o.pick(8192, 8, 1024), device, parallel.own_seed(o.seed + 50))
    with torch.no_grad():
        null = text(captions.null).float()
    d = Distiller(student, teacher, fake, guidance, null)
    ema = Ema(student, 0.99)
    keeper = Keeper(run, Model(s, text, shown, vae, device), ema, DENSE, o.pick(96, 2), batch)
    opt = Optimisers([], list(student.parameters()), muon_lr=0, lr=LR, betas=(0.0, 0.99), keep_grads=True)
    fake_opt = Optimisers([], list(fake.parameters()), muon_lr=0, lr=FAKE_LR, betas=(0.0, 0.99), keep_grads=True)
    if run.saved:
        student.load_state_dict(run.saved["model"])
        fake.load_state_dict(run.saved["fake"])
        ema.load(run.saved["ema"])
        opt.load(run.saved["opt"])
        fake_opt.load(run.saved["fake_opt"])
    else:
        regress(run, o, d, captions, text, ema, batch)
        fake.load_state_dict(teacher.state_dict())
        keeper.check(every=0, force=True)
    clips, clip_seed = parallel.per_process(o.pick(CLIPS, 8, 512)), parallel.own_seed(o.seed + 9)
    pool = LatentPool(s, vae, clips, device, clip_seed, chunk=o.pick(512, 8)) if scm else None
    while pool is not None and not pool.full:
        pool.grow()

    def follow_pass(steps: int) -> tuple[Tensor, ...]:
        loss = d.fake_loss(embed(text, captions.captions(batch)), s.latent, steps)
        loss.backward()
        return (loss.detach(),)

    def sharpen_pass(steps: int) -> tuple[Tensor, ...]:
        dmd = d.dmd_loss(embed(text, captions.captions(batch)), s.latent, steps)
        dmd.backward()
        return (dmd.detach(),)

    def agree_pass(x0: Tensor, ids: Tensor, ramp: Tensor) -> tuple[Tensor, ...]:
        consistency = d.scm_loss(x0, embed(text, ids), ramp)
        (SCM_WEIGHT * consistency).backward()
        return (consistency.detach(),)

    graphs = Pool(o.compile)
    follow = [Captured(partial(follow_pass, steps), graphs) for steps in (1, 2, 3, 4)]
    sharpen = [Captured(partial(sharpen_pass, steps), graphs) for steps in (1, 2, 3, 4)]
    agree = Captured(agree_pass, graphs)
    ramp_from = run.step
    for done in run.steps(reserve=o.pick(12, 0), smoke=2):
        lr = schedule(run.step - ramp_from, done, warmup=20, hold=0.6)
        for i in range(FAKE_UPDATES):
            (loss,) = follow[(run.step + i) % 4]()  # not drawn, so that all processes do the same work
            fake_opt.step(lr)
        (dmd,) = sharpen[run.step % 4]()
        consistency = torch.zeros((), device=device)
        if scm and pool is not None:
            ramp = torch.full((), min(1.0, (run.step - ramp_from) / RAMP), device=device)
            (consistency,) = agree(*pool.sample(half), ramp)
        norm = opt.step(lr)
        ema.update()
        run.log(10, fake=loss, dmd=dmd, scm=consistency, norm=norm)
        value = keeper.check(every=o.pick(30, 10_000))
        if scm and ((value is not None and value < keeper.best - 0.2) or (run.step % 20 == 0 and not norm.isfinite())):
            run.say("dropping the consistency loss: the student got worse with it")
            scm = False
            student.load_state_dict(keeper.state, strict=False)
            ema.load(keeper.state)
    keeper.check(every=0, force=True)
    run.save(model=student.state_dict(), fake=fake.state_dict(), ema=ema.state(), opt=opt.state(), fake_opt=fake_opt.state())
    save_weights(run.folder, "dit", keeper.state)
    save_weights(run.folder, "fake", fake.state_dict())
    result = finish(run, o, keeper, "student", Recipe("rcm", 4))
    return {**result, "scm": scm}


def embed(text: Any, ids: Tensor) -> Tensor:
    with torch.no_grad(), autocast(ids.device):
        return text(ids).float()


def regress(run: Run, o: Options, d: Distiller, captions: CaptionPool, text: Any, ema: Ema, batch: int) -> None:
    """The warm start: make trajectories, then regress their ends."""
    opt = Optimisers([], list(d.student.parameters()), muon_lr=0, lr=WARM_LR, betas=(0.9, 0.99), keep_grads=True)
    data = warm_start(d, captions, text, o.sizes, parallel.per_process(o.pick(TRAJECTORIES, 2, 192)), batch)
    run.say(f"{len(data[2])} trajectories of {len(data[1])} points")
    anchors = torch.tensor([0, 3, 7, 13], device=data[2].device)

    def passes() -> tuple[Tensor, ...]:
        loss = regression_loss(d, text, data, anchors, batch)
        loss.backward()
        return (loss.detach(),)

    both = Captured(passes, Pool(o.compile))
    begun = run.step
    for done in run.steps(smoke=2):
        share = done / (1.0 if o.smoke else WARM_SHARE)
        if share >= 1.0:
            break
        (loss,) = both()
        opt.step(schedule(run.step - begun, share, warmup=50, hold=0.5))
        ema.update()
        run.log(20, regression=loss)
    ema.load({n: p.detach() for n, p in d.student.named_parameters()})


def finish(run: Run, o: Options, keeper: Keeper, title: str, recipe: Recipe) -> dict[str, Any]:
    """Score the best average on held-out captions and write the result, the plot and a sheet of samples."""
    keeper.model.dit.load_state_dict(keeper.state, strict=False)

    def sheet(*args: Any) -> None:
        contact_sheet(run.folder / "samples.png", *args)

    held = score(keeper.model, recipe, o.pick(200, 2, 96), held_out=True, seed=1, sink=sheet, batch=keeper.batch)
    apart = parallel.disagreement(keeper.ema.source)
    result = {"training_captions": keeper.best, "held_out": held, "steps": run.step, "seconds": run.elapsed, "apart": apart}
    run.write(f"{run.stage}.json", result)
    run.plot(title)
    table(title, [("captions", "right", "color", "shape", "motion"), ("training", f"{keeper.best:.3f}"),
                  ("held out", *(f"{held[k]:.3f}" for k in ("right", "color", "shape", "motion"))),
                  ("steps", str(run.step)), ("seconds", f"{run.elapsed:.0f}")])  # fmt: skip
    return result


def load_student(o_out: Any, s: Sizes, device: torch.device, *, compile: bool, stage: str = "student") -> Dit:
    """The dense student, or with a stage `sla...` one that is fine-tuned for sparse attention."""
    dit = Dit(s, sla=stage.startswith("sla")).to(device)
    load_into(dit, o_out / stage, "dit")
    return dit.eval().requires_grad_(False).compiled(compile)


if __name__ == "__main__":
    a = add_arguments(parser(__doc__, 5.0)).parse_args()
    train(options(a), scm=a.scm)
