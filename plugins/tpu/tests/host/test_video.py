"""A video from a session on the `jax` executor, with random weights: the same frames as the reference backend."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from turbort.job import Job
from turbort.models.spec import MODELS
from turbort.registry import Registry
from turbort.session import Session

pytestmark = pytest.mark.skipif(
    not (MODELS["tiny"].root / "dit.safetensors").is_file(), reason="the embedded weights are not there"
)


def frames(spec, profile, on, registry):
    with Session.open(spec, profile, registry=registry, on=on, jobs=[Job("a red circle moves right", frames=9)]) as session:
        made = session.generate([Job("a red circle moves right", frames=9, seed=3)])
        assert session.report()["executed"]
        return np.asarray(made[0].frames, dtype=np.float32)


@torch.inference_mode()
def test_the_embedded_model_makes_the_same_clip():
    from turbort.profile import load_profile

    registry, profile = Registry(), load_profile("tpu-v5e")
    spec = replace(MODELS["tiny"])
    reference, got = frames(spec, profile, "cpu", registry), frames(spec, profile, None, registry)
    psnr = 10 * np.log10(255**2 / max(np.mean((reference - got) ** 2), 1e-9))
    assert psnr > 30
