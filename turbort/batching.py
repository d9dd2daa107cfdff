"""Which jobs run together, under the profile's batch and what memory leaves of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turbort.job import Job, batches, passes, samples_per_step

if TYPE_CHECKING:
    from turbort.profile import Profile

Numbered = tuple[int, Job]


@dataclass(frozen=True)
class Batching:
    """The profile's batch strategy; `planned` are the samples per model call of the plan, `allowed` those that memory allows."""

    profile: Profile
    planned: int
    allowed: int

    @property
    def squeezed(self) -> bool:
        """Whether memory allows less than was planned."""
        return self.allowed < self.planned

    def groups(self, numbered: Sequence[Numbered]) -> list[list[Numbered]]:
        """Jobs that run together, in order: full groups of a fixed batch, else groups as even as can be."""
        numbers = [number for number, _ in numbered]
        jobs = [job for _, job in numbered]
        even = self.profile.batch.mode == "dynamic"
        return [[(numbers[place], job) for place, job in group] for group in batches(jobs, self.most(jobs), even=even)]

    def most(self, jobs: Sequence[Job]) -> int:
        """Jobs per group: the samples per model call over the passes of a job."""
        if not jobs:
            return 1
        wanted = samples_per_step(self.profile, len(jobs), jobs[0])
        return max(1, (min(wanted, self.allowed) if self.squeezed else wanted) // passes(jobs[0]))

    def padded(self, jobs: Sequence[Job]) -> list[Job]:
        """A fixed batch is filled up by repeating its last job, so that one compiled shape serves all."""
        if self.profile.batch.mode != "fixed" or self.squeezed:
            return list(jobs)
        missing = self.profile.batch.most // passes(jobs[0]) - len(jobs)
        return [*jobs, *[jobs[-1]] * max(0, missing)]

    def together(self, jobs: Sequence[Job]) -> bool:
        """Whether both passes of guidance go into one model call."""
        samples = 2 * len(jobs)
        return samples <= self.profile.batch.most and samples <= (self.allowed if self.squeezed else samples)
