"""Every op has samples that are reproducible, varied, and agree about form between meta and the CPU."""

import re

import pytest
import torch

from turbort.ops import OPS
from turbort.precision import FLOATS, PRECISIONS
from turbort.quant import QTensor

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make(sample, dtype=torch.float32, device="cpu", seed=0):
    return sample.make(torch.Generator().manual_seed(seed), dtype, device)


def forms(output):
    parts = output if isinstance(output, tuple) else (output,)
    for part in parts:
        tensors = (part.values, part.scales) if isinstance(part, QTensor) else (part,)
        yield from ((tensor.shape, tensor.dtype) for tensor in tensors)


def test_the_built_in_ops():
    assert list(OPS) == [spec.name for spec in OPS.values()]
    assert len(OPS) == 17


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_well_formed(name):
    spec = OPS[name]
    ids = [sample.id for sample in spec.samples()]
    assert len(ids) == len(set(ids))
    assert all(SLUG.fullmatch(one) for one in ids)
    assert set(FLOATS) <= set(spec.precisions) <= set(PRECISIONS)
    assert set(spec.weights) <= set(spec.signature.parameters)
    assert spec.reference.__doc__
    assert any("real" in sample.tags for sample in spec.samples())


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("name", OPS)
def test_samples_run_on_meta_with_the_form_they_have_on_the_cpu(name, precision):
    spec = OPS[name]
    for sample in spec.samples():
        meta = spec(**make(sample, DTYPES[precision], "meta"))
        if "large" not in sample.tags and (precision == "bf16" or "real" not in sample.tags):
            real = spec(**make(sample, DTYPES[precision]))
            assert list(forms(meta)) == list(forms(real)), sample.id


@pytest.mark.parametrize("name", OPS)
def test_samples_are_reproducible_and_depend_on_the_seed(name):
    sample = next(iter(OPS[name].samples()))
    first, again, other = (make(sample, seed=s) for s in (1, 1, 2))
    tensors = [key for key, value in first.items() if isinstance(value, torch.Tensor)]
    assert tensors
    assert all(torch.equal(first[key], again[key]) for key in tensors)
    assert not all(torch.equal(first[key], other[key]) for key in tensors)


def test_views_are_what_their_tags_say():
    seen = set()
    for spec in OPS.values():
        for sample in spec.samples():
            for tag in {"strided", "offset"} & sample.tags:
                tensors = [value for value in make(sample).values() if isinstance(value, torch.Tensor)]
                assert any(not t.is_contiguous() if tag == "strided" else t.storage_offset() > 0 for t in tensors), sample.id
                seen.add(tag)
    assert seen == {"strided", "offset"}


def test_outlier_samples_have_outlier_channels():
    sample = next(s for s in OPS["linear"].samples() if "outlier" in s.tags)
    sizes = make(sample)["x"].flatten(0, 1).norm(dim=0)
    assert sizes.max() > 50 * sizes.median()


def test_samples_reach_the_sizes_that_break_kernels():
    shapes = [
        (k["x"].shape[1], k["x"].shape[2], k["weight"].shape[0])
        for k in (make(s, device="meta") for s in OPS["linear"].samples())
    ]
    assert {1536, 5120} <= {k for _, k, _ in shapes}
    assert {1, 7, 257, 1021, 32760} <= {m for m, _, _ in shapes}
    assert any(k % 128 for _, k, _ in shapes)
    assert any(n % 2 for _, _, n in shapes)
