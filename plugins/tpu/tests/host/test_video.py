"""From a prompt to frames through the `jax` executor: the clip is the one that the reference backend makes."""

from dataclasses import replace

import numpy as np
import pytest

from turbort.job import Job
from turbort.models.spec import MODELS
from turbort.models.tiny import read_spec
from turbort.profile import load_profile
from turbort.registry import Registry
from turbort.session import Session

JOB = Job("a red circle moves right", seed=3)
EMBEDDED = (MODELS["tiny"].root / "dit.safetensors").is_file()


def made(spec, on, job):
    with Session.open(spec, load_profile("tpu-v5e"), registry=Registry(), on=on, jobs=[job]) as session:
        frames = session.generate([job])[0].frames
        return frames, session.report()


def psnr(a, b):
    return 10 * np.log10(255**2 / max(float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)), 1e-9))


def compare(spec, job):
    want, _ = made(spec, "cpu", job)
    got, report = made(spec, None, job)
    assert got.shape == want.shape
    assert want.std() > 1
    assert report["executed"]
    assert {row["provider"].split("/")[0] for row in report["executed"] if row["stage"] == "dit"} == {"tpu"}
    return psnr(got, want)


def test_random_weights_make_the_same_clip(little):
    assert compare(read_spec(little / "model.yaml"), replace(JOB, steps=1)) > 30


@pytest.mark.skipif(not EMBEDDED, reason="this version comes without the embedded weights")
def test_the_embedded_model_makes_the_same_clip():
    assert compare(MODELS["tiny"], replace(JOB, frames=9)) > 30
