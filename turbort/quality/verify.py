"""`turbort verify`: the same noise and prompts in the unquantised baseline and in a profile, measured and judged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbort.denoise import sampler_of
from turbort.errors import UnavailableError
from turbort.guard.levels import make_levelled_plan
from turbort.job import Job
from turbort.models.sampler import Noise, Step
from turbort.models.spec import ModelSpec
from turbort.plan import Plan
from turbort.planner import Planner, Target, find_target
from turbort.profile import Profile
from turbort.quality import metrics
from turbort.quality.baseline import baseline_plan, baseline_profile
from turbort.quality.gates import Number, all_passed
from turbort.quality.judge import find_judge
from turbort.quality.numbers import numbers_of
from turbort.quality.promote import Costs, Promotion, worst_sites
from turbort.quality.sites import Site, SiteErrors
from turbort.quality.temporal import Temporal, temporal
from turbort.registry import Registry
from turbort.session import Session

Tell = Callable[[str], None]


@dataclass
class Clip:
    """One prompt in both runs: frames uint8 [T, H, W, 3], PSNR of each forward's clean latents, and steadiness."""

    job: Job
    reference: Any
    frames: Any
    forward: list[float]
    before: Temporal
    after: Temporal
    right: tuple[int, int, int] | None = None

    @property
    def psnr(self) -> list[float]:
        """PSNR of each frame in dB."""
        return metrics.psnr_of_frames(self.reference, self.frames)


@dataclass
class Verification:
    """Everything that was measured, and the verdict."""

    header: dict[str, Any]
    numbers: list[Number] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all_passed(self.numbers)

    def as_data(self) -> dict[str, Any]:
        """The verification as plain data, without frames."""
        return {
            "verify": 1,
            **self.header,
            "passed": self.passed,
            "numbers": [number.as_data() for number in self.numbers],
            "worst": [promotion.as_data() for promotion in self.promotions],
            "sites": [site.as_data() for site in self.sites],
            "clips": [
                {
                    "prompt": clip.job.prompt,
                    "seed": clip.job.seed,
                    "forward_psnr": clip.forward,
                    "psnr": clip.psnr,
                    "flicker": [clip.before.flicker, clip.after.flicker],
                    "latent_flicker": [clip.before.latent, clip.after.latent],
                    "warp": [clip.before.warp, clip.after.warp],
                }
                for clip in self.clips
            ],
        }


def verify(
    spec: ModelSpec,
    profile: Profile,
    jobs: Sequence[Job],
    *,
    registry: Registry | None = None,
    target: Target | None = None,
    root: Path | None = None,
    plan: Plan | None = None,
    tell: Tell = lambda _: None,
) -> Verification:
    """Run `jobs` (of one shape) in both runs and judge the profile against its gates.

    Both models are in memory at once, since each site of the profile is fed what the same site of the baseline gets.
    `plan` replaces the planner's choice. Raises UnavailableError without scikit-image and OpenCV, and what `Session.open` raises.
    """
    metrics.skimage_metrics()
    registry = registry or Registry()
    target = target or find_target(profile, registry)
    full = [job.resolved(spec) for job in jobs]
    size = (full[0].width or 0, full[0].height or 0)
    plan = plan or make_levelled_plan(spec, profile, registry, target=target, size=size, frames=full[0].frames)
    plain = baseline_plan(plan, profile)
    with (
        _opened(spec, baseline_profile(profile), registry, plain, target, root) as base,
        _opened(spec, profile, registry, plan, target, root) as other,
    ):
        pair = _Pair(base, other, plan, plain)
        judge, note = find_judge(spec.name)
        result = Verification(_header(spec, profile, plan, target, full[0], base))
        for number, job in enumerate(full, start=1):
            tell(f"prompt {number} of {len(full)}: {job.prompt}")
            clip = pair.clip(job)
            if judge is not None:
                found, wanted = judge(clip.frames, job.prompt), judge(clip.reference, job.prompt)
                clip.right = None if found is None or wanted is None else (wanted[0], found[0], found[1])
            result.clips.append(clip)
        result.sites = pair.sites
        result.report = other.report()
        unmet = result.report["unmet"]
        result.numbers = numbers_of(result.clips, result.sites, unmet, profile, full[0].steps or 0, note)
        planner = Planner(profile, registry, target)
        costs = Costs(worst_sites(pair.sites), planner, lambda: registry.backend(target.backend).synchronize(target.device))
        pair.once(full[0], costs)
        result.promotions = [costs.rows[site.choice.path] for site in worst_sites(pair.sites) if site.choice.path in costs.rows]
    return result


def _opened(
    spec: ModelSpec, profile: Profile, registry: Registry, plan: Plan, target: Target, root: Path | None
) -> Session:
    return Session.open(spec, profile, registry=registry, plan=plan, on=target, root=root)


def _header(spec: ModelSpec, profile: Profile, plan: Plan, target: Target, job: Job, base: Session) -> dict[str, Any]:
    return {
        "model": spec.name,
        "profile": profile.name,
        "plan": plan.digest,
        "device": target.device.name,
        "rehearsal": target.rehearsal,
        "baseline": f"reference functions in {profile.precision.compute}, nothing quantised",
        "weights": base.report()["weights"],
        "size": [job.width, job.height],
        "frames": job.frames,
        "steps": job.steps,
    }


class _Pair:
    """The two sessions, and what is compared between them."""

    def __init__(self, base: Session, other: Session, plan: Plan, plain: Plan) -> None:
        self.base, self.other = base, other
        if any(session.memory.residency.experts == "swap" or session.memory.residency.offload for session in (base, other)):
            raise UnavailableError(
                "verifying needs both runs on the device at once, and one of them does not even fit alone",
                fix="verify on a device with more memory, or at a smaller size",
            )
        self._dits = {role: SiteErrors(plan, plain, "dit", base.model(role), other.model(role)) for role in base.roles}
        self._vae = SiteErrors(plan, plain, "vae", base.vae, other.vae)

    @property
    def sites(self) -> list[Site]:
        """Every site that was compared."""
        both = [*self._dits.values(), self._vae]
        return [site for errors in both for site in errors.sites.values() if site.calls]

    @torch.inference_mode()
    def clip(self, job: Job) -> Clip:
        """Both videos of a job, with per-forward and per-op errors along the baseline's trajectory."""
        forward: list[float] = []
        latents = self._forced(job, forward)
        with self._vae.watching():
            _, reference = self.base.decode(latents, job)
        texts = self.other._embed([job])
        _, frames = self.other.decode(_last(self.other.denoiser([job], texts).steps(job, [job.seed])), job)
        stride = self.base.spec.vae.stride[0]
        return Clip(job, reference, frames, forward, temporal(reference, stride), temporal(frames, stride))

    def _forced(self, job: Job, forward: list[float]) -> Tensor:
        """The baseline's latents; at each of its states the profile predicts, too, and `forward` gets the PSNR."""
        sampler = sampler_of(self.base.spec, job)
        mine, theirs = (
            session.denoiser([job], session._embed([job])).velocity(job, sampler.times) for session in (self.base, self.other)
        )

        def both(x: Tensor, t: float) -> Tensor:
            step = len(forward)
            for errors in self._dits.values():
                errors.step = step + 1
            with _all(self._dits.values()):
                wanted = mine(x, t)
            sigma = sampler.sigmas[step]
            forward.append(metrics.latent_psnr(x - sigma * wanted.float(), x - sigma * theirs(x, t).float()))
            return wanted

        shape = self.base.spec.latent_shape(job.width or 0, job.height or 0, job.frames or 0)
        return _last(sampler.steps(both, Noise([job.seed], shape, self.base.device)))

    @torch.inference_mode()
    def once(self, job: Job, costs: Costs) -> None:
        """One forward of the baseline, and one decoding of a latent frame, with `costs` at every site."""
        sampler = sampler_of(self.base.spec, job)
        velocity = self.base.denoiser([job], self.base._embed([job])).velocity(job, sampler.times)
        shape = self.base.spec.latent_shape(job.width or 0, job.height or 0, job.frames or 0)
        with _all(self._dits.values(), costs):
            velocity(sampler.start(Noise([job.seed], shape, self.base.device)()), sampler.times[0])


def _last(steps: Iterator[Step]) -> Tensor:
    """The latents at the end of a trajectory; a sampler has at least one step."""
    return deque(steps, maxlen=1)[0].x


def _all(errors: Iterable[SiteErrors], costs: Costs | None = None) -> ExitStack:
    """The watching of several models at once."""
    stack = ExitStack()
    for each in errors:
        stack.enter_context(each.watching(costs.seen if costs else None))
    return stack
