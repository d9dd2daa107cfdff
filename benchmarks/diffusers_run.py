"""One video with diffusers' own WanPipeline in this process: load, encode, four rCM steps, decode, write.

Everything but the scheduler is diffusers' code as users run it. diffusers has no rCM scheduler, so the one here does that
update and no more. Seconds per stage go to a JSON file.
"""

from __future__ import annotations

import time

START = time.perf_counter()

import argparse  # noqa: E402 - the clock starts before anything is imported
import json  # noqa: E402
import math  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from diffusers import WanPipeline  # noqa: E402
from diffusers.configuration_utils import ConfigMixin  # noqa: E402
from diffusers.schedulers import SchedulerMixin  # noqa: E402
from diffusers.utils import export_to_video  # noqa: E402


class RcmScheduler(SchedulerMixin, ConfigMixin):
    """x <- (1 - t') (x - t v) + t' * noise at t = sin a / (sin a + cos a), a = atan(sigma_max), 1.5, 1.4, 1.0."""

    order = 1

    def __init__(self, sigma_max: float, generator: torch.Generator) -> None:
        self.sigma_max = sigma_max
        self.generator = generator

    def set_timesteps(self, steps: int, device: torch.device | str = "cpu") -> None:
        angles = (math.atan(self.sigma_max), 1.5, 1.4, 1.0)[:steps]
        self.sigmas = torch.tensor([math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles] + [0.0])
        self.timesteps = 1000 * self.sigmas[:-1].to(device)
        self.index = 0

    def set_begin_index(self, index: int = 0) -> None:
        self.index = index

    def step(self, velocity, t, sample, return_dict=False):
        now, then = float(self.sigmas[self.index]), float(self.sigmas[self.index + 1])
        self.index += 1
        clean = sample - now * velocity
        if then == 0.0:
            return (clean,)
        return ((1 - then) * clean + then * torch.randn(sample.shape[1:], generator=self.generator)[None],)


class Clock:
    """Seconds per stage since the process began to import."""

    def __init__(self) -> None:
        self.last = START
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self.last, 4)
        self.last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--job", type=json.loads, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    args = parser.parse_args()
    job, clock = args.job, Clock()
    clock.lap("import")

    pipe = WanPipeline.from_pretrained(args.folder, torch_dtype=getattr(torch, args.dtype))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(job["seed"])
    pipe.scheduler = RcmScheduler(job["sigma_max"], generator)
    pipe.scheduler.set_timesteps(job["steps"])
    clock.lap("load")

    with torch.inference_mode():
        text, _ = pipe.encode_prompt(job["prompt"], do_classifier_free_guidance=False, max_sequence_length=job["text_len"])
        clock.lap("text")
        noise = torch.randn(job["latents"], generator=generator)[None]
        latents = pipe(
            prompt_embeds=text,
            height=job["height"],
            width=job["width"],
            num_frames=job["frames"],
            num_inference_steps=job["steps"],
            guidance_scale=1.0,
            latents=noise * float(pipe.scheduler.sigmas[0]),
            output_type="latent",
        ).frames
        clock.lap("sample")
        config = pipe.vae.config
        mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        decoded = pipe.vae.decode((latents * std + mean).to(pipe.vae.dtype), return_dict=False)[0]
        frames = pipe.video_processor.postprocess_video(decoded.float(), output_type="np")[0]
        clock.lap("decode")

    if args.out.suffix == ".npy":
        import numpy as np

        np.save(args.out, (frames * 255).round().astype("uint8"))
    else:
        export_to_video(list(frames), str(args.out), fps=job["fps"])
    clock.lap("write")
    args.report.write_text(json.dumps({"seconds": clock.seconds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
