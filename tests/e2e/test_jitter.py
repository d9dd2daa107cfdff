"""Scales that jump from frame to frame: PSNR is content, the temporal gate is not. Embedded model, any weights."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from turbort.hookspecs import hookimpl
from turbort.job import Job
from turbort.kernel import Call, Kernel
from turbort.models.spec import get_model
from turbort.op import slots
from turbort.planner import find_target, make_plan
from turbort.profile import load_profile
from turbort.quality.baseline import baseline_plan, baseline_profile
from turbort.quality.gates import Number, ratio
from turbort.quality.metrics import psnr
from turbort.quality.temporal import temporal
from turbort.quality.verify import verify
from turbort.reference import Reference, reference_kernels
from turbort.registry import Registry
from turbort.session import Session
from turbort.testing.jitter import gains, jitter

pytest.importorskip("skimage")
pytest.importorskip("cv2")
SPEC = get_model("tiny")
JOB = Job("a red circle moves right", seed=0)
LAST = f"blocks.{SPEC.dit.layers - 1}.ffn.2.op"
LADDER = (0.2, 0.35, 0.5, 0.8)


def test_the_gate_fires_before_psnr_does() -> None:
    """Activation scales of one int8 linear, in turn larger and smaller by a share; the first share that the gate catches."""
    profile = load_profile("cpu")
    profile = profile.model_copy(update={"monitor": profile.monitor.model_copy(update={"on_outlier": "ignore"})})
    registry = Registry()
    plan = make_plan(SPEC, profile, registry, target=find_target(profile, registry))
    stride, frames = SPEC.vae.stride[0], SPEC.token_grid(128, 128, SPEC.defaults.frames)[0]
    with Session.open(SPEC, baseline_profile(profile), plan=baseline_plan(plan, profile)) as session:
        reference = session.generate([JOB])[0].frames
    before = temporal(reference, stride)
    with Session.open(SPEC, profile, plan=plan) as session:

        def latent(video: Any) -> float:
            return ratio(temporal(video, stride).latent, before.latent)

        assert latent(session.generate([JOB])[0].frames) < profile.quality.temporal
        slot = slots(session.model("dit"))[LAST]
        for share in LADDER:
            with jitter(slot, gains(frames, share)):
                video = session.generate([JOB])[0].frames
            if latent(video) > profile.quality.temporal:
                break
        else:
            pytest.fail(f"the gate caught no share of {LADDER}")
        assert psnr(reference, video) > profile.quality.psnr
        with jitter(slot, [1 + share] * frames):
            steady = session.generate([JOB])[0].frames
        # As large an error that is the same in every frame is no flicker, though PSNR may like it less.
        assert latent(steady) < latent(video)


def jittering() -> Any:
    """A plugin: the reference, but for the model's head, whose input jumps by 8 % from latent frame to latent frame."""

    def elsewhere(call: Call, _: object) -> str | None:
        return None if call.role == "head" else "jitters at the head only"

    class Jittering(Reference):
        name = "jittering"

        def kernels(self) -> Iterable[Kernel]:
            yield from reference_kernels("plain")
            yield Kernel("linear", "jumps", "turbort.testing.wrong:jumps_from_frame_to_frame", ("fp32",), elsewhere, priority=50)

    @hookimpl
    def turbort_backends() -> Iterable[Any]:
        return (Jittering(),)

    return SimpleNamespace(__name__="jittering", HOOK_API=1, turbort_backends=turbort_backends)


def test_verify_names_the_number_that_failed() -> None:
    registry, profile = Registry(extra=[jittering()]), load_profile("cpu")
    result = verify(SPEC, profile, [JOB], registry=registry, target=find_target(profile, registry, "jittering"))
    numbers: dict[str, Number] = {number.name: number for number in result.numbers}
    assert numbers["video PSNR"].passed
    assert numbers["video SSIM"].passed
    assert numbers["flicker of latent frames"].passed is False
    assert not result.passed
    assert [site.choice.path for site in result.sites if not site.passed] == ["dit/head.head.op"]
