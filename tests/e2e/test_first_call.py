"""What a compiler is told about a step's arguments is what a run gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.e2e.test_real_models import KINDS, Make, image, make  # noqa: F401 - fixtures
from turbort.first_call import first_call
from turbort.job import Job
from turbort.models.config import ModelSpec
from turbort.models.tiny import read_spec
from turbort.profile import Profile, load_profile
from turbort.reference import Reference
from turbort.session import Session

PROMPT = "a red circle moves right"


def wanted(**memory: str) -> Profile:
    """The profile of a TPU, whose batch is fixed at 2, without the monitor, which has steps of its own on the CPU."""
    profile = load_profile("tpu-v5e")
    monitor = profile.monitor.model_copy(update={"on_outlier": "ignore"})
    return profile.model_copy(update={"monitor": monitor, "memory": profile.memory.model_copy(update=memory)})


def described(arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    leaves, form = pytree.tree_flatten(arguments)
    return form, [(tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves]


def both(spec: ModelSpec, profile: Profile, job: Job, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The arguments of the first call in a run, and those that are foretold."""
    seen: list[Any] = []

    def compile_step(self: Any, step: Callable[..., Any], device: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            return step(*args, **kwargs)

        return run

    monkeypatch.setattr(Reference, "compile_step", compile_step)
    monkeypatch.setattr(Session, "decode", lambda *_: (None, None))
    with Session.open(spec, profile, on="cpu", jobs=[job]) as session:
        foretold = first_call(
            session.model(session.roles[0]), spec, profile, session.plan, replace(job, image=None).resolved(spec)
        )
        assert not seen
        session.generate([job])
    return described(seen[0]), described(foretold)


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_kind_of_model(kind: str, make: Make, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    spec = make(kind)
    size = {"width": spec.defaults.width, "height": spec.defaults.height}
    job = Job(PROMPT, image=image if spec.task == "i2v" else None, **size)
    ran, foretold = both(spec, wanted(), job, monkeypatch)
    assert ran == foretold


@pytest.mark.parametrize("guidance", [1.0, 2.0], ids=["one pass", "two passes"])
@pytest.mark.parametrize("cache", ["none", "int8"])
def test_with_guidance_and_cache(guidance: float, cache: str, little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read_spec(little / "model.yaml")
    ran, foretold = both(spec, wanted(activation_cache=cache), Job(PROMPT, guidance=guidance), monkeypatch)
    assert ran == foretold
    assert ran[1][0] == ((2, 16, 3, 8, 8), torch.bfloat16)
