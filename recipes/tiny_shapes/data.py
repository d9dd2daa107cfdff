"""Pools of clips on the device: pixels for the autoencoder, latents and caption tokens for the transformer."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.tiny_shapes import captions, parallel, scene, tokenizer
from recipes.tiny_shapes.config import Sizes

PARAPHRASES = 4


class Workers:
    """Processes for captions and judging; work is done in place when there are none.

    Call `close` when the work is over: worker processes keep the one that started them alive.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        if self.count <= 0:
            future: Future[Any] = Future()
            future.set_result(fn(*args))
            return future
        if self._pool is None:
            # Forked children of a process that has used CUDA are not safe; fresh ones import only numpy and OpenCV code.
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"))
        return self._pool.submit(fn, *args)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


@lru_cache(maxsize=1)
def workers() -> Workers:
    """One pool per process; small machines work in place."""
    cores = (os.cpu_count() or 1) // parallel.world()
    return Workers(min(12, cores - 2) if cores >= 6 else 0)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    return tokenizer.build_tokenizer()


def vocabulary_size() -> int:
    return int(_tokenizer().get_vocab_size())


def tokens(texts: list[str], length: int) -> np.ndarray:
    """Token ids, zero padded: int64 [N, length]."""
    out = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in zip(out, _tokenizer().encode_batch(texts), strict=True):
        row[: len(text.ids)] = text.ids[:length]
    return out


def draw_scenes(count: int, seed: int, length: int) -> tuple[list[scene.Scene], np.ndarray]:
    """Training scenes and PARAPHRASES captions of each as tokens [count, PARAPHRASES, length]."""
    rng = np.random.default_rng((seed, 77))
    scenes = [scene.sample_scene(rng, scene.TRAINED_TWO_SHARE) for _ in range(count)]
    texts = [captions.caption(s, rng) for s in scenes for _ in range(PARAPHRASES)]
    return scenes, tokens(texts, length).reshape(count, PARAPHRASES, length)


class SceneStream:
    """Scenes with caption tokens, drawn ahead by worker processes."""

    def __init__(self, seed: int, length: int, chunk: int, ahead: int = 12) -> None:
        self.seed, self.length, self.chunk = seed * 1_000_003, length, chunk
        self.ahead = ahead if workers().count else 1
        self.waiting: list[Future[Any]] = []

    def next(self) -> tuple[list[scene.Scene], np.ndarray, int]:
        while len(self.waiting) < self.ahead:
            self.seed += 1
            self.waiting.append(workers().submit(draw_scenes, self.chunk, self.seed, self.length))
        scenes, ids = self.waiting.pop(0).result()
        return scenes, ids, self.seed


class PixelPool:
    """Rendered clips as uint8 [N, 3, T, H, W] on the device, from which random crops in time are taken."""

    def __init__(self, s: Sizes, count: int, device: torch.device, seed: int) -> None:
        from recipes.tiny_shapes.render import render

        self.s = s
        self.clips = torch.empty(count, 3, s.frames, s.edge, s.edge, dtype=torch.uint8, device=device)
        rng = np.random.default_rng((seed, 5))
        for i in range(0, count, 64):
            n = min(64, count - i)
            scenes = [scene.sample_scene(rng) for _ in range(n)]
            video = render(scenes, s.frames, s.edge, seed=seed * 100_003 + i, device=device)
            self.clips[i : i + n] = video.add_(1).mul_(127.5).round_().to(torch.uint8)

    def sample(self, batch: int, frames: int) -> Tensor:
        """Random crops in time, float32 [batch, 3, frames, H, W] in [-1, 1]."""
        device = self.clips.device
        which = torch.randint(len(self.clips), (batch, 1), device=device)
        first = torch.randint(self.s.frames - frames + 1, (batch, 1), device=device)
        when = first + torch.arange(frames, device=device)
        crop = self.clips.transpose(1, 2)[which, when]  # [batch, frames, 3, H, W]
        return crop.transpose(1, 2).float().div_(127.5).sub_(1)


class LatentPool:
    """Latents (bfloat16) and caption tokens of rendered clips; grows until it is full."""

    def __init__(self, s: Sizes, vae: Any, capacity: int, device: torch.device, seed: int, chunk: int = 256) -> None:
        self.s, self.vae, self.device, self.chunk = s, vae, device, min(chunk, capacity)
        self.latents = torch.empty(capacity, *s.latent, dtype=torch.bfloat16, device=device)
        self.ids = torch.zeros(capacity, PARAPHRASES, s.text_len, dtype=torch.long, device=device)
        self.size = 0
        self.stream = SceneStream(seed + 1, s.text_len, self.chunk)
        self.null = torch.from_numpy(tokens([""], s.text_len)).to(device)

    @property
    def full(self) -> bool:
        return self.size >= len(self.latents)

    @torch.no_grad()
    def grow(self, encode_batch: int = 32) -> None:
        """Render and encode one more chunk."""
        if self.full:
            return
        from recipes.tiny_shapes.common import autocast
        from recipes.tiny_shapes.render import render

        scenes, ids, seed = self.stream.next()
        scenes = scenes[: len(self.latents) - self.size]
        for i in range(0, len(scenes), 64):
            video = render(scenes[i : i + 64], self.s.frames, self.s.edge, seed=seed * 1000 + i, device=self.device)
            for j in range(0, len(video), encode_batch):
                with autocast(self.device):
                    z = self.vae.encode(video[j : j + encode_batch])
                at = self.size + i + j
                self.latents[at : at + len(z)] = z.to(torch.bfloat16)
        self.ids[self.size : self.size + len(scenes)] = torch.from_numpy(ids[: len(scenes)]).to(self.device)
        self.size += len(scenes)

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """Random clips: latents float32 [batch, z, T, H, W] and one caption each, token ids [batch, text_len]."""
        which = torch.randint(self.size, (batch,), device=self.device)
        pick = torch.randint(PARAPHRASES, (batch,), device=self.device)
        return self.latents[which].float(), self.ids[which, pick]

    def captions(self, batch: int) -> Tensor:
        """Captions alone, token ids [batch, text_len]."""
        which = torch.randint(self.size, (batch,), device=self.device)
        return self.ids[which, torch.randint(PARAPHRASES, (batch,), device=self.device)]


class CaptionPool:
    """Caption tokens without clips, for the stages that need none."""

    def __init__(self, s: Sizes, count: int, device: torch.device, seed: int, chunk: int = 1024) -> None:
        stream = SceneStream(seed + 1, s.text_len, min(chunk, count), ahead=max(1, -(-count // chunk)))
        parts = [stream.next()[1] for _ in range(-(-count // chunk))]
        self.ids = torch.from_numpy(np.concatenate(parts)).flatten(0, 1).to(device)
        self.null = torch.from_numpy(tokens([""], s.text_len)).to(device)

    def captions(self, batch: int) -> Tensor:
        return self.ids[torch.randint(len(self.ids), (batch,), device=self.ids.device)]
