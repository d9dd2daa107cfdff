"""How many jobs run together and how much is decoded at once: the profile's wish within the memory forecast."""

from __future__ import annotations

from collections.abc import Sequence

from turbort.job import Job, passes, samples_per_step
from turbort.memory import Forecast
from turbort.plan import Plan
from turbort.profile import Profile


def most_jobs(jobs: Sequence[Job], profile: Profile, plan: Plan, memory: Forecast) -> int:
    """Jobs per group: the profile's samples per step, as far as the memory forecast allows, over the passes of a job."""
    if not jobs:
        return 1
    wanted = samples_per_step(profile, len(jobs), jobs[0])
    if memory.residency.batch < int(plan.header["batch"]):
        wanted = min(wanted, memory.residency.batch)
    return max(1, wanted // passes(jobs[0]))


def padded(count: int, job: Job, profile: Profile, plan: Plan, memory: Forecast) -> int:
    """A fixed batch is filled up by repeating its last job, so that one compiled shape serves all."""
    if profile.batch.mode != "fixed" or memory.residency.batch < int(plan.header["batch"]):
        return count
    return max(count, profile.batch.most // passes(job))


def chunk_of(job: Job, plan: Plan, memory: Forecast) -> int:
    """Latent frames decoded at once: as forecast for the plan's size, fewer for a larger job."""
    width, height = plan.header["size"]
    pixels = (job.width or 1) * (job.height or 1)
    return max(1, memory.residency.chunk * int(width * height) // pixels)
