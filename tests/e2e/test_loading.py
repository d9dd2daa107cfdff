"""What a session loads and compiles: no encoder without an image, no capture where the profile forbids it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.test_real_models import JOB, Make, image, make, plain  # noqa: F401 - fixtures
from turbort.job import Event
from turbort.memory_sites import weight_bytes
from turbort.planner import make_plan
from turbort.profile import Profile
from turbort.reference import Reference
from turbort.registry import Registry
from turbort.session import Session


def waiting(session: Session) -> set[str]:
    """First parts of the names of VAE parameters that are not loaded."""
    return {name.partition(".")[0] for name, value in session._pixels.vae.named_parameters() if value.is_meta}


def test_the_encoder_waits_for_an_image(make: Make, image: Path) -> None:  # noqa: F811
    spec, events = make("ti2v"), []
    with Session.open(spec, plain(), jobs=[JOB], on_event=events.append) as session:
        assert waiting(session) == {"encoder", "conv1"}
        loaded = sum(isinstance(event, Event) and event.message == "vae" for event in events)
        names = [name for name, _ in session._pixels.vae.named_parameters()]
        assert loaded == len([name for name in names if not name.startswith(session._pixels.vae.encoding)])
        text_only = session.generate([JOB])[0].frames
        shown = session.generate([replace(JOB, image=image, width=64, height=64)])[0].frames
        assert waiting(session) == set()
        assert session.generate([JOB])[0].frames.tobytes() == text_only.tobytes()
    with Session.open(spec, plain(), jobs=[replace(JOB, image=image, width=64, height=64)]) as session:
        assert waiting(session) == set()
        assert session.plan.header["image"] is True
        again = session.generate([replace(JOB, image=image, width=64, height=64)])[0].frames
    # Planned with the image the encoder runs other kernels than the references it falls back to: at most one level of 255.
    assert np.abs(again.astype(int) - shown.astype(int)).max() <= 1


def test_the_forecast_counts_the_encoder_only_where_it_is_loaded(make: Make) -> None:  # noqa: F811
    spec = make("ti2v")
    plans = [make_plan(spec, plain(), Registry(), size=(64, 64), frames=5, image=given) for given in (False, True)]
    without, with_encoder = (weight_bytes(plan, spec, plain()).vae for plan in plans)
    assert without < with_encoder
    assert any(choice.path.startswith("vae/encoder") for choice in plans[1])
    assert not any(choice.path.startswith("vae/encoder") for choice in plans[0])


@pytest.mark.parametrize(("capture", "compiled"), [(False, 0), (True, 1), ("auto", 1)])
def test_the_profile_decides_whether_the_step_is_compiled(
    capture: Any, compiled: int, make: Make, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    calls = []
    monkeypatch.setattr(Reference, "compile_step", lambda self, step, device: calls.append(step) or step)
    profile: Profile = plain().model_copy(update={"graph": plain().graph.model_copy(update={"capture": capture})})
    with Session.open(make("ti2v"), profile, jobs=[JOB]) as session:
        assert (session.plan.header.get("graph") == "eager") is (capture is False)
    assert len(calls) == compiled
