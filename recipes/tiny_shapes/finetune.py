"""Stage 4: fine-tune the student for sparse-linear attention and 8-bit arithmetic.

The student with SLA (top-k 0.1, blocks of 64 queries and 128 keys, one key block at least) and rounded int8 operands
first regresses the dense student's velocity on the dense student's own sampling paths, then also takes the gradient of
score distillation, as in stage 3, which keeps its samples sharp.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.captured import Captured, Pool
from recipes.tiny_shapes.common import Options, Run, autocast, load_into, options, parser, prepare, save_weights
from recipes.tiny_shapes.config import SLA_TOPK
from recipes.tiny_shapes.data import CaptionPool
from recipes.tiny_shapes.distill import Keeper, embed, finish, load_student
from recipes.tiny_shapes.losses import Distiller
from recipes.tiny_shapes.nets import Dit, Mode
from recipes.tiny_shapes.optim import Ema, Optimisers, schedule
from recipes.tiny_shapes.sampling import rcm_times
from recipes.tiny_shapes.scoring import Model, Recipe
from recipes.tiny_shapes.teacher import load_teacher
from recipes.tiny_shapes.vae_train import load_vae

BATCH = 96
LR = 4e-4
FAKE_LR = 1.5e-4
REGRESS_SHARE = 0.5  # of the time before score distillation joins
DMD_WEIGHT = 0.25
MODE = Mode(topk=SLA_TOPK, linear="w8a8", int8=True)


@torch.no_grad()
def path(dense: Dit, text: Tensor, shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(x, t, velocity) of the dense student at its four steps."""
    times = rcm_times(4)
    x = torch.randn(len(text), *shape, device=text.device) * times[0]
    out = []
    for now, then in itertools.pairwise(times):
        t = torch.full((len(x),), now, device=x.device)
        with autocast(x.device):
            v = dense(x, t, text)
        out.append((x, t, v))
        x = (1 - then) * (x - now * v) + then * torch.randn_like(x)
    return out


def train(o: Options, stage: str = "sla", mode: Mode = MODE) -> dict[str, Any]:
    device = prepare(o)
    run, s = Run(stage, o), o.sizes
    batch = parallel.per_process(o.batch or o.pick(BATCH, 2))
    vae = load_vae(o.out, s, device, compile=o.compile)
    teacher, text, guidance = load_teacher(o.out, s, device, compile=o.compile)
    dense = load_student(o.out, s, device, compile=o.compile)
    student, shown = (Dit(s, sla=True).to(device).compiled(o.compile) for _ in range(2))
    for net in (student, shown):
        net.load_state_dict(dense.state_dict(), strict=False)
    shown.requires_grad_(False)
    fake = Dit(s).to(device).compiled(o.compile)
    if any((o.out / "student").glob("fake*.safetensors")):
        load_into(fake, o.out / "student", "fake")
    else:  # it stays behind when a run is packed; the first tracker updates make up for it
        fake.load_state_dict(teacher.state_dict())
    captions = CaptionPool(s, o.pick(8192, 8, 1024), device, parallel.own_seed(o.seed + 70))
    with torch.no_grad():
        null = text(captions.null).float()
    d = Distiller(student, teacher, fake, guidance, null, mode)
    ema = Ema(student, 0.99)
    keeper = Keeper(run, Model(s, text, shown, vae, device), ema, mode, o.pick(96, 2), batch)
    opt = Optimisers([], list(student.parameters()), muon_lr=0, lr=LR, betas=(0.9, 0.99), keep_grads=True)
    fake_opt = Optimisers([], list(fake.parameters()), muon_lr=0, lr=FAKE_LR, betas=(0.0, 0.99), keep_grads=True)
    if run.saved:
        student.load_state_dict(run.saved["model"])
        fake.load_state_dict(run.saved["fake"])
        ema.load(run.saved["ema"])
        opt.load(run.saved["opt"])
        fake_opt.load(run.saved["fake_opt"])

    def learn_pass(steps: int) -> tuple[Tensor, Tensor]:
        """Regression along the dense student's path and, with steps > 0, score distillation after that many steps."""
        context = embed(text, captions.captions(batch))
        loss = dmd = torch.zeros((), device=device)
        for x, t, v in path(dense, context, s.latent):
            with autocast(device):
                part = (student(x, t, context, mode) - v).square().mean() / 4
            part.backward()
            loss = loss + part.detach()
        if steps:
            dmd = d.dmd_loss(context, s.latent, steps)
            (DMD_WEIGHT * dmd).backward()
        return loss, dmd.detach()

    def follow_pass(steps: int) -> tuple[Tensor, ...]:
        tracked = d.fake_loss(embed(text, captions.captions(batch)), s.latent, steps)
        tracked.backward()
        return (tracked.detach(),)

    graphs = Pool(o.compile)
    learn = [Captured(partial(learn_pass, steps), graphs) for steps in range(5)]
    follow = [Captured(partial(follow_pass, steps), graphs) for steps in range(5)]
    for done in run.steps(reserve=o.pick(12, 0), smoke=4):
        lr = schedule(run.step, done, warmup=50, hold=0.3)
        sharpen = done > REGRESS_SHARE
        tracked = torch.zeros((), device=device)
        for i in range(2 if sharpen else 0):
            (tracked,) = follow[1 + (run.step + 2 * i + 1) % 4]()
            fake_opt.step(1.0)
        loss, dmd = learn[1 + run.step % 4 if sharpen else 0]()
        norm = opt.step(lr)
        ema.update()
        run.log(10, regression=loss, dmd=dmd, fake=tracked, norm=norm)
        keeper.check(every=o.pick(30, 10_000))
    keeper.check(every=0, force=True)
    run.save(model=student.state_dict(), fake=fake.state_dict(), ema=ema.state(), opt=opt.state(), fake_opt=fake_opt.state())
    save_weights(run.folder, "dit", keeper.state, torch.float32)  # int8 codes are made from what was trained
    title = f"student, SLA and {mode.linear}" if mode.linear else "student, SLA"
    return finish(run, o, keeper, title, Recipe("rcm", 4, mode=mode))


if __name__ == "__main__":
    train(options(parser(__doc__, 2.5).parse_args()))
