"""From a prompt to frames through the `jax` executor: the clip is the one that the reference backend makes."""

import os
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
CLIPS = int(os.environ.get("TPU_CLIPS", "2"))  # one batch: one compiled program, run four times
EMBEDDED = (MODELS["tiny"].root / "dit.safetensors").is_file()


def made(spec, profile, on, jobs):
    """Frames of the clips, and the receipt."""
    with Session.open(spec, load_profile(profile), registry=Registry(), on=on, jobs=jobs) as session:
        return [result.frames for result in session.generate(jobs)], session.report()


def ran_on_tpu(report):
    return {row["provider"].split("/")[0] for row in report["executed"] if row["stage"] == "dit"} == {"tpu"}


def psnr(a, b):
    return 10 * np.log10(255**2 / max(float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)), 1e-9))


@pytest.mark.skipif(EMBEDDED, reason="the embedded model shows the same and more")
def test_random_weights_make_the_same_clip(little):
    spec, job = read_spec(little / "model.yaml"), replace(JOB, steps=1)
    (want,), _ = made(spec, "tpu-v5e", "cpu", [job])
    (got,), report = made(spec, "tpu-v5e", None, [job])
    assert got.shape == want.shape
    assert want.std() > 1
    assert ran_on_tpu(report)
    assert psnr(got, want) > 30


@pytest.mark.skipif(not EMBEDDED, reason="this version comes without the embedded weights")
def test_the_embedded_model_scores_as_on_the_cpu():
    """The judge of recipes/tiny_shapes finds as many held-out clips right as it does in those of the CPU backend."""
    from recipes.tiny_shapes.scene import held_out_scenes
    from recipes.tiny_shapes.scoring import captions_for, judge_one

    scenes = held_out_scenes(CLIPS, 1)
    jobs = [Job(text, seed=1000 + i) for i, text in enumerate(captions_for(scenes, 2))]
    want, _ = made(MODELS["tiny"], "cpu", None, jobs)
    got, report = made(MODELS["tiny"], "tpu-v5e", None, jobs)
    assert ran_on_tpu(report)
    right = {
        name: [judge_one(frames, scene)["right"] for frames, scene in zip(clips, scenes, strict=True)]
        for name, clips in (("cpu", want), ("tpu", got))
    }
    assert sum(right["tpu"]) == sum(right["cpu"]), right
    assert any(right["cpu"])
