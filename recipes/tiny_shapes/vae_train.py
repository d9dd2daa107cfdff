"""Stage 1: train the video autoencoder.

Whole clips, always: what is learned on 17 frames does not carry to 33. Loss: Charbonnier distance and squared error of
pixels, both with more weight on saturated ones, half the Charbonnier distance of differences along x, y and t, and a small
KL term that starts at 0. Decoder inputs carry the posterior's noise plus, for half the clips, some more, so that the decoder
forgives errors of the transformer. The latents' mean and standard deviation, measured at the end, go into `vae.json`.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.common import Options, Run, autocast, load_into, options, parser, prepare, save_weights, table
from recipes.tiny_shapes.config import Sizes
from recipes.tiny_shapes.data import PixelPool
from recipes.tiny_shapes.optim import Ema, Optimisers, schedule, split_kernels
from recipes.tiny_shapes.rates import Rates, try_rates
from recipes.tiny_shapes.scoring import judge_all, to_frames
from recipes.tiny_shapes.vaenet import Vae

BATCH = 8  # clips, over all processes
RATES = ((3e-3, 1e-3), (1e-3, 5e-4), (0.0, 8e-4))  # peak rates of (Muon, AdamW) that are tried first; 0: AdamW alone
TRIAL = 150  # steps of each try, with a schedule of its own
KL = 1e-4  # nats per latent value against mean absolute error of pixels in [-1, 1]
KL_RAMP = 0.3  # share of the time over which the KL weight rises from 0
OBJECTS = 8.0  # extra weight of saturated pixels
SQUARES = 1.0  # weight of the squared error, which large errors (a wrong hue) dominate
JITTER = 0.1  # largest extra noise on decoder inputs, in standard deviations of the prior
POOL = 4096


PLAIN_LAYERS = ("encoder.conv1", "encoder.head", "conv1", "conv2", "decoder.conv1", "decoder.head")  # not for Muon


def charbonnier(x: Tensor) -> Tensor:
    return (x.square() + 1e-4).sqrt()


def pixel_weights(video: Tensor) -> Tensor:
    """1 for gray, 1 + OBJECTS for saturated pixels, over their mean: [B, 1, T, H, W]."""
    chroma = video.amax(1, keepdim=True) - video.amin(1, keepdim=True)  # backgrounds stay under 0.16, shapes are over 1.1
    weight = 1 + OBJECTS * ((chroma - 0.25) / 0.75).clamp(0, 1)
    return weight / weight.mean()


def vae_loss(vae: Vae, video: Tensor, kl_weight: float = KL) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and its parts for pixels [B, 3, T, H, W] in [-1, 1]."""
    mean, logvar = vae.moments(video)
    noise = torch.randn_like(mean)
    # Half the clips get the posterior's noise alone.
    extra = JITTER * (2 * torch.rand(len(mean), 1, 1, 1, 1, device=mean.device) - 1).clamp_min(0)
    z = mean + noise * (torch.exp(0.5 * logvar) + extra)
    error = vae.raw_decode(z) - video
    weight = pixel_weights(video)
    pixel = (weight * (charbonnier(error) + SQUARES * error.square())).mean()
    edges = sum(charbonnier(error.diff(dim=d)).mean() for d in (2, 3, 4)) / 3
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = pixel + 0.5 * edges + kl_weight * kl
    with torch.no_grad():
        late = error[:, :, error.shape[2] // 2 + 1 :].square().mean()
        dead = (logvar.mul(0.5).exp().mean((0, 2, 3, 4)) > 0.9).sum()
        parts = {"loss": loss, "pixel": pixel, "edges": edges, "kl": kl, "mse": error.square().mean(), "late_mse": late}
    return loss, {**parts, "dead": dead}


def optimisers(vae: Vae, rates: Rates) -> Optimisers:
    muon_lr, lr = rates
    kernels, rest = split_kernels(vae, PLAIN_LAYERS) if muon_lr else ([], list(vae.parameters()))
    return Optimisers(kernels, rest, muon_lr=muon_lr, lr=lr, betas=(0.9, 0.98), weight_decay=1e-4)


def update(vae: Vae, opt: Optimisers, video: Tensor, rate: float, kl_weight: float) -> dict[str, Tensor]:
    """One step; returns what to log."""
    with autocast(video.device):
        loss, parts = vae_loss(vae, video.contiguous(memory_format=torch.channels_last_3d), kl_weight)
    loss.backward()
    return {**parts, "norm": opt.step(rate)}


@torch.no_grad()
def measure(vae: Vae, pool: PixelPool, clips: int, batch: int = 16) -> tuple[list[float], list[float]]:
    """Mean per channel and standard deviation of the aggregated posterior.

    With the posterior's own variance counted in, a channel that carries nothing stays near 0 instead of being blown up.
    """
    means, variances = [], []
    for i in range(0, clips, batch):
        with autocast(pool.clips.device):
            mean, logvar = vae.moments(pool.clips[i : i + batch].float().div(127.5).sub(1))
        means.append(mean)
        variances.append(logvar.exp())
    m, v = torch.cat(means).double(), torch.cat(variances).double()
    axes = (0, 2, 3, 4)
    std = (m.var(dim=axes) + v.mean(dim=axes)).sqrt()
    return m.mean(dim=axes).tolist(), std.tolist()


@torch.no_grad()
def psnr(vae: Vae, clips: Tensor, batch: int = 16) -> float:
    """Mean over uint8 clips of 10 log10(4 / mse), dB, encoding and decoding whole clips."""
    values = []
    for part in clips.split(batch):
        video = part.float().div(127.5).sub(1)
        with autocast(video.device):
            back = vae.decode(vae.encode(video)).clamp(-1, 1)
        values.append(10 * torch.log10(4 / (back - video).square().mean((1, 2, 3, 4))))
    return float(torch.cat(values).mean())


def reconstruction_score(vae: Vae, s: Sizes, device: torch.device, count: int) -> float:
    """Share of clips that the judge still calls right after encoding and decoding."""
    import numpy as np

    from recipes.tiny_shapes.render import render
    from recipes.tiny_shapes.scene import sample_scene

    rng = np.random.default_rng(991)
    scenes = parallel.split([sample_scene(rng) for _ in range(count)])
    clips = render(scenes, s.frames, s.edge, seed=992, device=device)
    with torch.no_grad(), autocast(device):
        z = [vae.encode(part) for part in clips.split(16)]
        frames = to_frames(vae, torch.cat(z), 16)
    return sum(parallel.gather([r["right"] for r in judge_all(frames, scenes)])) / count


def load_vae(out: Any, s: Sizes, device: torch.device, *, compile: bool = False) -> Vae:
    """The trained autoencoder with its latent statistics."""
    vae = Vae(s).to(device)
    load_into(vae, out / "vae", "vae")
    info = json.loads((out / "vae" / "vae.json").read_text())
    vae.set_statistics(info["mean"], info["std"])
    return vae.eval().requires_grad_(False).compiled(compile)


def train(o: Options) -> dict[str, Any]:
    device = prepare(o)
    run, s = Run("vae", o), o.sizes
    batch = parallel.per_process(o.batch or o.pick(BATCH, 2))
    vae = Vae(s).to(device)
    if device.type == "cuda":
        vae.channels_last()
    vae.compiled(o.compile)
    pool = PixelPool(s, parallel.per_process(o.pick(POOL, 8, 512)), device, parallel.own_seed(o.seed))
    run.say(f"{sum(p.numel() for p in vae.parameters())} parameters, {len(pool.clips)} clips, batch {batch}")
    if run.saved:
        vae.load_state_dict(run.saved["model"])
        rates = tuple(run.saved["rates"])
    else:

        def step(opt: Optimisers, rate: float) -> Tensor:
            return update(vae, opt, pool.sample(batch, s.frames), rate, 0.0)["loss"]

        rates = try_rates(run, vae, RATES, lambda r: optimisers(vae, r), step, o.pick(TRIAL, 2, 10))
    opt, ema = optimisers(vae, rates), Ema(vae, 0.998)
    if run.saved:
        opt.load(run.saved["opt"])
        ema.load(run.saved["ema"])
    begun = run.step
    for done in run.steps(reserve=15):
        rate = schedule(run.step - begun, done, warmup=100, hold=0.3)
        parts = update(vae, opt, pool.sample(batch, s.frames), rate, KL * min(1.0, done / KL_RAMP))
        ema.update()
        run.log(**parts)
        if run.step % 2000 == 1999:
            run.save(model=vae.state_dict(), opt=opt.state(), ema=ema.state(), rates=rates)
    run.save(model=vae.state_dict(), opt=opt.state(), ema=ema.state(), rates=rates)
    save_weights(run.folder, "vae", ema.state(), torch.float32)
    vae.load_state_dict(ema.state(), strict=False)
    vae.eval().requires_grad_(False).compiled(False)  # a few calls are not worth compiling for
    mean, std = parallel.agree(measure(vae, pool, o.pick(512, 4)))
    vae.set_statistics(mean, std)
    fresh = PixelPool(s, o.pick(64, 2), device, o.seed + 1)
    result = {
        "psnr": psnr(vae, fresh.clips),
        "right": reconstruction_score(vae, s, device, o.pick(96, 2, 16)),
        "mean": mean, "std": std, "steps": run.step, "seconds": run.elapsed, "rates": rates,
        "apart": parallel.disagreement(vae.parameters()),
    }  # fmt: skip
    run.write("vae.json", result)
    run.plot("autoencoder")
    table("autoencoder", [
        ("steps", str(run.step)), ("PSNR dB", f"{result['psnr']:.2f}"), ("judged right", f"{result['right']:.3f}"),
        ("rates", str(rates)), ("latent std", " ".join(f"{v:.2f}" for v in std)), ("seconds", f"{run.elapsed:.0f}"),
    ])  # fmt: skip
    return result


if __name__ == "__main__":
    train(options(parser(__doc__, 4.5).parse_args()))
