"""Generated clips in, share of fully right clips out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.captions import caption
from recipes.tiny_shapes.common import autocast
from recipes.tiny_shapes.config import RCM_TIMES, SHIFT, Sizes
from recipes.tiny_shapes.data import tokens, workers
from recipes.tiny_shapes.nets import DENSE, Dit, Mode
from recipes.tiny_shapes.sampling import euler_sample, guided, rcm_sample
from recipes.tiny_shapes.scene import Scene, held_out_scenes, sample_scene
from recipes.tiny_shapes.textnet import TextEncoder


@dataclass
class Model:
    """Text encoder, transformer and autoencoder of one generator."""

    sizes: Sizes
    text: TextEncoder
    dit: Dit
    vae: Any
    device: torch.device


@dataclass(frozen=True)
class Recipe:
    """How clips are sampled: `rcm` with steps, or `euler` with steps and guidance."""

    sampler: str = "rcm"
    steps: int = len(RCM_TIMES) + 1
    guidance: float = 1.0
    mode: Mode = DENSE
    half: bool = True  # bf16 where the device has it


@torch.no_grad()
def generate(
    model: Model, texts: list[str], recipe: Recipe, *, seed: int = 0, batch: int = 50, numbers: list[int] | None = None
) -> np.ndarray:
    """uint8 frames [N, T, H, W, 3]; a clip starts from noise that depends on `seed` and its number alone."""
    numbers = list(range(len(texts))) if numbers is None else numbers
    s, device = model.sizes, model.device
    frames = []
    for begin in range(0, len(texts), batch):
        part = texts[begin : begin + batch]
        noise = torch.stack([_noise(s, seed, i) for i in numbers[begin : begin + batch]]).to(device)
        generator = torch.Generator(device).manual_seed(seed * 7919 + begin)
        with autocast(device) if recipe.half else torch.autocast(device.type, enabled=False):
            text, null = (model.text(torch.from_numpy(tokens(t, s.text_len)).to(device)) for t in (part, [""]))

            def net(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
                return model.dit(x, t, context, recipe.mode)

            velocity = guided(net, text, null, recipe.guidance)
            if recipe.sampler == "rcm":
                z = rcm_sample(velocity, noise, recipe.steps, generator)
            else:
                z = euler_sample(velocity, noise, recipe.steps, SHIFT)
            frames.append(to_frames(model.vae, z))
    return np.concatenate(frames)


def _noise(s: Sizes, seed: int, index: int) -> Tensor:
    return torch.randn(s.latent, generator=torch.Generator().manual_seed(seed * 1_000_003 + index))


@torch.no_grad()
def to_frames(vae: Any, latents: Tensor, batch: int = 25) -> np.ndarray:
    """Decode latents to uint8 frames [N, T, H, W, 3]."""
    out = []
    for z in latents.split(batch):
        video = vae.decode(z).float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        out.append(video.permute(0, 2, 3, 4, 1).cpu().numpy())
    return np.concatenate(out)


def judge_one(frames: np.ndarray, scene: Scene) -> dict[str, Any]:
    """The judge's verdict as plain values."""
    from recipes.tiny_shapes.oracle import judge

    verdict = judge(frames, scene)
    rows = verdict.objects
    return {
        "right": verdict.fully_right,
        "color": all(o.color_ok for o in rows),
        "shape": all(o.shape_ok for o in rows),
        "motion": all(o.motion_ok for o in rows),
        "extra": bool(verdict.extra),
        "objects": len(rows),
        "found": [None if o.found is None else f"{o.found.color} {o.found.shape} {o.found.motion}" for o in rows],
    }


def judge_all(frames: np.ndarray, scenes: list[Scene]) -> list[dict[str, Any]]:
    futures: list[Future[Any]] = [workers().submit(judge_one, f, s) for f, s in zip(frames, scenes, strict=True)]
    return [f.result() for f in futures]


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares in 0..1 of clips that are right in everything and per attribute, and by the number of objects; `captions`."""

    def share(key: str, some: list[dict[str, Any]]) -> float:
        return round(sum(bool(r[key]) for r in some) / max(1, len(some)), 4)

    out = {key: share(key, rows) for key in ("right", "color", "shape", "motion", "extra")}
    for count, name in ((1, "one_object"), (2, "two_objects")):
        out[name] = share("right", [r for r in rows if r["objects"] == count])
    out["captions"] = len(rows)
    return out


def captions_for(scenes: list[Scene], seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [caption(s, rng) for s in scenes]


def score(
    model: Model, recipe: Recipe, count: int, *, held_out: bool, seed: int = 0,
    sink: Callable[[np.ndarray, list[dict[str, Any]], list[str]], None] | None = None, batch: int = 50,
) -> dict[str, float]:  # fmt: skip
    """Generate and judge `count` clips: held-out scenes for results, training scenes for choosing a checkpoint.

    Several processes share the work and get the same result; `sink` sees the clips of this one.
    """
    rng = np.random.default_rng(seed + 17)
    scenes = held_out_scenes(count, seed) if held_out else [sample_scene(rng) for _ in range(count)]
    texts = captions_for(scenes, seed + 1)
    mine = parallel.split(list(range(count)))
    texts, scenes = [texts[i] for i in mine], [scenes[i] for i in mine]
    frames = generate(model, texts, recipe, seed=seed, batch=batch, numbers=mine)
    rows = judge_all(frames, scenes)
    if sink and parallel.lead():
        sink(frames, rows, texts)
    return summary(parallel.gather(rows))


def contact_sheet(path: Any, frames: np.ndarray, rows: list[dict[str, Any]], texts: list[str], clips: int = 12) -> None:
    """A PNG: one clip a row, six frames each, wrong clips first, the caption above."""
    import cv2

    order = sorted(range(len(rows)), key=lambda i: rows[i]["right"])[:clips]
    strips = []
    for i in order:
        pick = np.linspace(0, len(frames[i]) - 1, 6).round().astype(int)
        strip = np.concatenate(list(frames[i][pick]), axis=1)
        bar = np.full((16, strip.shape[1], 3), 255, np.uint8)
        label = ("ok: " if rows[i]["right"] else f"WRONG {rows[i]['found']}: ") + texts[i]
        cv2.putText(bar, label[:125], (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
        strips += [bar, strip]
    cv2.imwrite(str(path), np.concatenate(strips)[..., ::-1])
