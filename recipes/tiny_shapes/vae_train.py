"""Stage 1: train the video autoencoder.

Loss: Charbonnier distance of pixels, half of that of their differences along x, y and t, and a small KL term. Decoder
inputs carry the posterior's noise plus a random share of latent noise, so that it forgives errors of the transformer.
The latents' mean and standard deviation, measured at the end, go into `vae.json`.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from recipes.tiny_shapes.common import Options, Run, autocast, load_into, options, parser, prepare, save_weights, table
from recipes.tiny_shapes.config import Sizes
from recipes.tiny_shapes.data import PixelPool
from recipes.tiny_shapes.optim import Ema, Optimisers, schedule
from recipes.tiny_shapes.scoring import judge_all, to_frames
from recipes.tiny_shapes.vaenet import Vae

BATCH = 16
LR = 1.5e-3
KL = 3e-3  # nats per latent value against mean absolute error of pixels in [-1, 1]
KL_RAMP = 0.2  # share of the time over which the KL weight rises from 0
JITTER = 0.1  # largest extra noise on decoder inputs, in standard deviations of the prior
POOL = 4096


def charbonnier(x: Tensor) -> Tensor:
    return (x.square() + 1e-4).sqrt().mean()


def vae_loss(vae: Vae, video: Tensor, kl_weight: float = KL) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and its parts for pixels [B, 3, T, H, W] in [-1, 1]."""
    mean, logvar = vae.moments(video)
    noise = torch.randn_like(mean)
    # Half the clips get the posterior's noise alone.
    extra = JITTER * (2 * torch.rand(len(mean), 1, 1, 1, 1, device=mean.device) - 1).clamp_min(0)
    z = mean + noise * (torch.exp(0.5 * logvar) + extra)
    error = vae.raw_decode(z) - video
    pixel = charbonnier(error)
    edges = sum(charbonnier(error.diff(dim=d)) for d in (2, 3, 4)) / 3
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = pixel + 0.5 * edges + kl_weight * kl
    return loss, {"loss": loss, "pixel": pixel, "edges": edges, "kl": kl, "mse": error.detach().square().mean()}


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
    scenes = [sample_scene(rng) for _ in range(count)]
    clips = render(scenes, s.frames, s.edge, seed=992, device=device)
    with torch.no_grad(), autocast(device):
        z = [vae.encode(part) for part in clips.split(16)]
        frames = to_frames(vae, torch.cat(z), 16)
    return sum(r["right"] for r in judge_all(frames, scenes)) / count


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
    batch = o.batch or o.pick(BATCH, 2)
    vae = Vae(s).to(device)
    if device.type == "cuda":
        vae.channels_last()
    vae.compiled(o.compile)
    opt = Optimisers([], list(vae.parameters()), muon_lr=0.0, lr=LR, betas=(0.9, 0.98), weight_decay=1e-4)
    ema = Ema(vae, 0.998)
    if run.saved:
        vae.load_state_dict(run.saved["model"])
        opt.load(run.saved["opt"])
        ema.load(run.saved["ema"])
    pool = PixelPool(s, o.pick(POOL, 8, 512), device, o.seed)
    run.say(f"{sum(p.numel() for p in vae.parameters())} parameters, {len(pool.clips)} clips, batch {batch}")
    for done in run.steps(reserve=15):
        with autocast(device):
            video = pool.sample(batch, s.vae_frames).contiguous(memory_format=torch.channels_last_3d)
            loss, parts = vae_loss(vae, video, KL * min(1.0, done / KL_RAMP))
        loss.backward()
        norm = opt.step(schedule(run.step, done, warmup=150, hold=0.4))
        ema.update()
        run.log(**parts, norm=norm)
        if run.step % 2000 == 1999:
            run.save(model=vae.state_dict(), opt=opt.state(), ema=ema.state())
    run.save(model=vae.state_dict(), opt=opt.state(), ema=ema.state())
    save_weights(run.folder, "vae", ema.state(), torch.float32)
    vae.load_state_dict(ema.state(), strict=False)
    vae.eval().requires_grad_(False).compiled(False)  # a few calls are not worth compiling for
    mean, std = measure(vae, pool, o.pick(512, 4))
    vae.set_statistics(mean, std)
    fresh = PixelPool(s, o.pick(64, 2), device, o.seed + 1)
    result = {
        "psnr": psnr(vae, fresh.clips),
        "right": reconstruction_score(vae, s, device, o.pick(96, 2, 16)),
        "mean": mean, "std": std, "steps": run.step, "seconds": run.elapsed,
    }  # fmt: skip
    (run.folder / "vae.json").write_text(json.dumps(result, indent=1))
    run.plot("autoencoder")
    table("autoencoder", [
        ("steps", str(run.step)), ("PSNR dB", f"{result['psnr']:.2f}"), ("judged right", f"{result['right']:.3f}"),
        ("latent std", " ".join(f"{v:.2f}" for v in std)), ("seconds", f"{run.elapsed:.0f}"),
    ])  # fmt: skip
    return result


if __name__ == "__main__":
    train(options(parser(__doc__, 4.5).parse_args()))
