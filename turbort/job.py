"""What a session is asked, what it says while working, and what it returns. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.errors import InputError
from turbort.models.sizes import fit_picture
from turbort.models.spec import ModelSpec

if TYPE_CHECKING:
    from turbort.profile import Profile


@dataclass(frozen=True)
class Job:
    """One video to make. None means the model's default; sizes in pixels, `frames` is 1 + 4k, `fps` in frames per second.

    `image` is the picture that the video continues; without a size the video takes its shape. `guidance_low` is the
    guidance of a low-noise expert; it follows `guidance` where only that is given.
    """

    prompt: str
    seed: int = 0
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    out: Path | None = None
    image: Path | None = None
    guidance_low: float | None = None

    def resolved(self, spec: ModelSpec) -> Job:
        """The same job with every None replaced by the model's default, or by what its image suggests."""
        preset, defaults = spec.preset, spec.defaults
        width, height = defaults.width, defaults.height
        if self.image is not None and self.width is None and self.height is None:
            width, height = fit_picture(_size_of(self.image), spec)
        low = self.guidance_low
        if low is None and spec.experts:
            low = preset.guidance_low if self.guidance is None else self.guidance
        return Job(
            prompt=self.prompt,
            seed=self.seed,
            width=self.width or width,
            height=self.height or height,
            frames=self.frames or defaults.frames,
            fps=self.fps or defaults.fps,
            steps=self.steps or preset.steps,
            guidance=preset.guidance if self.guidance is None else self.guidance,
            negative_prompt=spec.negative_prompt if self.negative_prompt is None else self.negative_prompt,
            out=self.out,
            image=self.image,
            guidance_low=low,
        )

    @property
    def shape(self) -> tuple[Any, ...]:
        """Jobs of equal shape can share a batch."""
        return self.width, self.height, self.frames, self.steps, self.guidance, self.guidance_low, self.image is None


@dataclass(frozen=True)
class Event:
    """Progress: `stage` is plan, load, text, image, sample, decode or write; `memory` is used bytes where known."""

    stage: str
    step: int = 0
    steps: int = 0
    job: int = 0
    memory: int | None = None
    message: str = ""


OnEvent = Callable[[Event], None]


def silent(_: Event) -> None:
    """The default listener."""


@dataclass(frozen=True)
class Result:
    """One finished video: its job, where it lies (None: frames were only returned), and seconds per stage.

    `frames` is uint8 [T, H, W, 3] when the job named no file. Stage times of jobs that shared a batch are the batch's.
    """

    job: Job
    path: Path | None
    seconds: dict[str, float] = field(default_factory=dict)
    frames: Any = None

    @property
    def video_seconds(self) -> float:
        """Length of the video."""
        return (self.job.frames or 0) / (self.job.fps or 1)


def batches(jobs: Iterable[Job], most: int, *, even: bool = False) -> Iterator[list[tuple[int, Job]]]:
    """Group neighbouring jobs of equal shape, at most `most` together, keeping order and numbers.

    `even` makes the groups of one shape equally large, so that none is smaller than it need be: 9 jobs of at most 8 are
    5 and 4. Otherwise all but the last are full.
    """
    for _, same in groupby(enumerate(jobs), key=lambda pair: pair[1].shape):
        run = list(same)
        count = -(-len(run) // most)
        size, longer = divmod(len(run), count) if even else (most, 0)
        start = 0
        for number in range(count):
            stop = start + size + (number < longer)
            yield run[start:stop]
            start = stop


def passes(job: Job) -> int:
    """Model passes per step and video: two with classifier-free guidance, else one."""
    scales = (job.guidance or 1.0, 1.0 if job.guidance_low is None else job.guidance_low)
    return 2 if any(scale != 1.0 for scale in scales) else 1


def check_image(job: Job, spec: ModelSpec) -> None:
    """InputError for an image that the model cannot take, or one that it needs and lacks."""
    if spec.task == "i2v" and job.image is None:
        raise InputError(f"{spec.name} continues an image, and none was given", fix="add --image FILE, or choose a t2v model")
    if job.image is not None and spec.task != "i2v" and not spec.dit.token_time:
        raise InputError(f"{spec.name} starts from text alone", fix="leave out --image, or choose an i2v model")


@lru_cache(maxsize=256)
def _size_of(path: Path) -> tuple[int, int]:
    from turbort.io.image import image_size

    return image_size(path)


def samples_per_step(profile: Profile, jobs: int, job: Job) -> int:
    """Samples in one model call: whole jobs with all their passes, within the profile's batch.

    Where the batch is too small for the two passes of one job they run one after the other, one sample at a time.
    """
    if jobs < 1:
        raise InputError("there is no job to run", fix="give a prompt or a file of prompts")
    each = passes(job)
    together = profile.batch.most // each
    return max(1, each * (together if profile.batch.mode == "fixed" else min(jobs, together)))
