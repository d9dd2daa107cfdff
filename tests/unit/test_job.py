"""Batches: samples per call, groups, and what a job's image and guidance decide."""

from dataclasses import replace
from pathlib import Path

import pytest

from turbort.errors import InputError
from turbort.job import Job, batches, check_image, passes, samples_per_step
from turbort.models.files import locate
from turbort.models.spec import MODELS
from turbort.profile import parse_profile


def profile(batch):
    return parse_profile(f"target: {{backend: cuda}}\nname: x\nbatch: {batch}\n")


GUIDED, PLAIN = Job("x", guidance=5.0), Job("x", guidance=1.0)


@pytest.mark.parametrize(
    ("batch", "jobs", "job", "samples"),
    [
        ("{mode: fixed, size: 1}", 3, PLAIN, 1),
        ("{mode: fixed, size: 1}", 3, GUIDED, 1),  # the passes run one after the other
        ("{mode: fixed, size: 2}", 1, GUIDED, 2),  # the pair as one batch
        ("{mode: fixed, size: 2}", 1, PLAIN, 2),  # padded
        ("{mode: fixed, size: 3}", 5, GUIDED, 2),  # whole pairs only
        ("{mode: dynamic, min: 1, max: 4}", 3, PLAIN, 3),
        ("{mode: dynamic, min: 1, max: 4}", 3, GUIDED, 4),
        ("{mode: dynamic, min: 4, max: 8}", 1, PLAIN, 1),
    ],
)
def test_samples_per_step(batch, jobs, job, samples):
    assert samples_per_step(profile(batch), jobs, job) == samples


def test_no_job_is_an_error():
    with pytest.raises(InputError):
        samples_per_step(profile("{mode: fixed, size: 1}"), 0, PLAIN)


def test_groups_keep_order_and_never_mix_shapes():
    jobs = [Job(str(n), width=64 if n < 3 else 32) for n in range(6)]
    groups = list(batches(jobs, 2))
    assert [[number for number, _ in group] for group in groups] == [[0, 1], [2], [3, 4], [5]]
    mixed = [Job("a"), Job("b", image=Path("x.png")), Job("c", image=Path("y.png"))]
    assert [len(group) for group in batches(mixed, 3)] == [1, 2]


def test_the_low_expert_s_guidance_follows_the_user_s():
    spec = MODELS["wan2.2-t2v-a14b"]
    assert (Job("x").resolved(spec).guidance, Job("x").resolved(spec).guidance_low) == (4.0, 3.0)
    assert Job("x", guidance=1.0).resolved(spec).guidance_low == 1.0
    assert passes(Job("x", guidance=1.0, guidance_low=2.0)) == 2
    assert Job("x").resolved(MODELS["wan2.1-t2v-14b"]).guidance_low is None


def test_images_only_where_the_model_takes_one():
    picture = Job("x", image=Path("x.png"))
    check_image(picture, MODELS["wan2.2-ti2v-5b"])
    check_image(Job("x"), MODELS["wan2.2-ti2v-5b"])
    check_image(picture, MODELS["wan2.1-i2v-14b"])
    for job, model in ((picture, "wan2.1-t2v-14b"), (Job("x"), "wan2.2-i2v-a14b")):
        with pytest.raises(InputError):
            check_image(job, MODELS[model])


def test_quantised_files_are_taken_when_they_are_wanted(tmp_path):
    spec = replace(MODELS["wan2.1-t2v-1.3b"], files={"dit": ("TurboWan2.1-T2V-1.3B-480P*.pth",)})
    for name in ("TurboWan2.1-T2V-1.3B-480P-quant.pth", "TurboWan2.1-T2V-1.3B-480P.pth"):
        (tmp_path / name).touch()
    assert "quant" in locate(spec, tmp_path, quantised=True)["dit"].name
    assert "quant" not in locate(spec, tmp_path)["dit"].name
    (tmp_path / "TurboWan2.1-T2V-1.3B-480P.pth").unlink()
    assert "quant" in locate(spec, tmp_path)["dit"].name


def test_a_shard_stands_for_its_index(tmp_path):
    """Wan's 14B transformers are six files and an index; one shard alone is not the model."""
    spec = replace(MODELS["wan2.1-t2v-14b"], files={"dit": MODELS["wan2.1-t2v-14b"].files["dit"]})
    for name in ("-00001-of-00006.safetensors", "-00002-of-00006.safetensors", ".safetensors.index.json"):
        (tmp_path / f"diffusion_pytorch_model{name}").touch()
    assert locate(spec, tmp_path)["dit"].name == "diffusion_pytorch_model.safetensors.index.json"
