"""Running out of memory in every stage: freed, one step down, tried once more, said, and never half a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.e2e.test_real_models import JOB, Make, frames, make, plain  # noqa: F401 - `make` is a fixture
from turbort.denoise import Denoiser
from turbort.embed import Embedder
from turbort.errors import UnavailableError
from turbort.job import Event
from turbort.models.wan_vae import WanVae
from turbort.pixels import Pixels
from turbort.profile import Profile
from turbort.recovery import out_of_memory
from turbort.session import Session

Fail = Callable[[type, str, int, int], list[int]]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """`fail(Class, "method", first, times)`: `times` calls from number `first` on run out of memory; returns their count."""

    def install(owner: type, name: str, first: int, times: int) -> list[int]:
        real, calls = getattr(owner, name), [0]

        def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
            if args and getattr(args[0], "is_meta", False):
                return real(self, *args, **kwargs)  # the planner looks at shapes
            calls[0] += 1
            if first <= calls[0] < first + times:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, limited)
        return calls

    return install


def flexible() -> Profile:
    """May offload, and runs up to two jobs together."""
    base = plain()
    batch = base.batch.model_copy(update={"mode": "dynamic", "size": None, "min": 1, "max": 2})
    return base.model_copy(update={"batch": batch, "memory": base.memory.model_copy(update={"offload": "auto"})})


@pytest.mark.parametrize(
    ("owner", "name", "first", "stage", "step"),
    [
        (Pixels, "load", 1, "load", "one at a time"),
        (Embedder, "_load", 1, "text", "before the transformer"),
        (Denoiser, "steps", 1, "sample", "batch 1"),
        (WanVae, "_decode", 2, "decode", "VAE 1 latent"),
    ],
)
def test_each_stage_steps_down_once_and_makes_the_same_video(
    owner: type, name: str, first: int, stage: str, step: str, make: Make, fail: Fail, tmp_path: Path  # noqa: F811
) -> None:
    spec = make("t2v22" if stage == "load" else "ti2v")
    jobs = [replace(JOB, out=tmp_path / "a.npy"), replace(JOB, seed=4, out=tmp_path / "b.npy")]
    usual, _ = frames(spec, [replace(job, out=None) for job in jobs], flexible())
    calls, events = fail(owner, name, first, 1), []
    with Session.open(spec, flexible(), jobs=jobs, on_event=events.append) as session:
        session.memory = replace(session.memory, residency=replace(session.memory.residency, chunk=2))
        results = session.generate(jobs, events.append)
        report = session.report()
    assert calls[0] > 1
    said = [event.message for event in events if isinstance(event, Event) and event.message.startswith("out of memory")]
    assert len(said) == 1
    assert f"stage {stage}" in said[0]
    assert step in said[0]
    assert report["memory"]["steps_down"] == said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]
    for result, want in zip(results, usual, strict=True):
        assert np.abs(np.load(result.path).astype(int) - want.astype(int)).max() <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("owner", "name"), [(Denoiser, "steps"), (WanVae, "_decode")])
def test_a_second_time_is_final_and_leaves_no_file(
    owner: type, name: str, make: Make, fail: Fail, tmp_path: Path  # noqa: F811
) -> None:
    spec = make("ti2v")
    jobs = [replace(JOB, out=tmp_path / file) for file in ("a.mp4", "b.mp4")]
    fail(owner, name, 2 if name == "_decode" else 1, 99)
    with Session.open(spec, flexible(), jobs=jobs) as session:
        session.memory = replace(session.memory, residency=replace(session.memory.residency, chunk=2))
        with pytest.raises(UnavailableError, match="again") as refused:
            session.generate(jobs)
    assert "--memory-budget" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == (["a.mp4"] if name == "_decode" else [])  # what was finished stays


def test_where_nothing_is_left_to_save_the_error_says_so(make: Make, fail: Fail) -> None:  # noqa: F811
    fail(Denoiser, "steps", 1, 1)
    with pytest.raises(UnavailableError, match="nothing is left to save"):
        frames(make("ti2v"), [JOB], plain())  # the CPU's profile forbids leaving the device


def test_what_counts_as_running_out_of_memory() -> None:
    assert out_of_memory(RuntimeError("NPU out of memory. Tried to allocate"))
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(KeyboardInterrupt())
