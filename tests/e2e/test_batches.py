"""Batches: the same bytes for a job alone, in a full, padded or uneven batch, and with the guidance pair in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.test_real_models import JOB, Make, frames, make, plain  # noqa: F401 - `make` is a fixture
from turbort.batching import Batching
from turbort.job import Job
from turbort.models.config import ModelSpec
from turbort.profile import Profile
from turbort.session import Session

JOBS = [replace(JOB, seed=seed, prompt=prompt) for seed, prompt in ((3, "a red circle"), (4, "a blue star"), (5, "a red star"))]


def batched(**batch: Any) -> Profile:
    base = plain()
    return base.model_copy(update={"batch": base.batch.model_copy(update={"size": None, **batch})})


def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples in every call of the transformer from now on."""
    from turbort.models.wan_dit import WanDit

    real, seen = WanDit.forward, []

    def counted(self: WanDit, x: Any, *args: Any, **kwargs: Any) -> Any:
        if not x.is_meta:
            seen.append(len(x))
        return real(self, x, *args, **kwargs)

    monkeypatch.setattr(WanDit, "forward", counted)
    return seen


def bytes_of(spec: ModelSpec, jobs: list[Job], profile: Profile) -> list[bytes]:
    return [one.tobytes() for one in frames(spec, jobs, profile)[0]]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_job_is_the_same_alone_and_in_every_batch(
    guidance: float, make: Make, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    spec = make("ti2v")
    jobs = [replace(job, guidance=guidance) for job in JOBS]
    alone = [bytes_of(spec, [job], batched(mode="fixed", size=1))[0] for job in jobs]
    assert len(set(alone)) == 3
    seen = sizes(monkeypatch)
    each = 1 if guidance == 1.0 else 2
    for batch, calls in (
        ({"mode": "fixed", "size": 2 * each}, [2 * each] * 4),  # two groups of two steps, the second padded
        ({"mode": "dynamic", "min": 1, "max": 2 * each}, [2 * each] * 2 + [each] * 2),
        ({"mode": "dynamic", "min": 1, "max": 8}, [3 * each] * 2),
    ):
        seen.clear()
        assert bytes_of(spec, jobs, batched(**batch)) == alone, batch
        assert seen == calls, batch


def test_the_pair_runs_together_only_where_there_is_room(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    spec, seen = make("ti2v"), sizes(monkeypatch)
    job = replace(JOB, guidance=2.0)
    together = bytes_of(spec, [job], batched(mode="fixed", size=2))
    assert seen == [2, 2]
    seen.clear()
    with Session.open(spec, batched(mode="fixed", size=2), jobs=[job]) as session:
        session.memory = replace(session.memory, residency=replace(session.memory.residency, batch=1))
        apart = [result.frames.tobytes() for result in session.generate([job])]
    assert seen == [1, 1, 1, 1]
    assert apart == together


def test_groups_of_a_dynamic_batch_are_even() -> None:
    """Nine jobs of at most eight are five and four, which a `min` of four allows; eight and one it would not."""
    groups = Batching(batched(mode="dynamic", min=4, max=8), 8, 8).groups(list(enumerate([JOB] * 9)))
    assert [[number for number, _ in group] for group in groups] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    squeezed = Batching(batched(mode="dynamic", min=4, max=8), 8, 3).groups(list(enumerate([JOB] * 9)))
    assert [len(group) for group in squeezed] == [3, 3, 3]
