"""Pixels to bytes: exact codes at the edges, layout, dtypes, and refusal of values that are not numbers."""

import numpy as np
import pytest
import torch

from turbort.errors import TurbortError
from turbort.io import Arriving, frames_to_uint8


def test_every_code_is_reachable_and_returns_to_itself():
    codes = torch.arange(256, dtype=torch.float32)
    video = (codes / 127.5 - 1).reshape(1, 1, 16, 16).expand(3, 1, 16, 16)
    assert (frames_to_uint8(video)[0, ..., 0].reshape(-1) == np.arange(256)).all()


def test_rounding_and_clamping():
    """0 is the only value that lies exactly between two codes."""
    values = torch.tensor([-9.0, -1.0, -1 + 0.9 / 255, -1 + 1.1 / 255, 0.0, 1.0 - 0.9 / 255, 1.0, 9.0])
    expected = [0, 0, 0, 1, 128, 255, 255, 255]
    got = frames_to_uint8(values.reshape(1, 1, 1, -1).repeat(3, 1, 1, 1))[0, 0, :, 0].tolist()
    assert got == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layout_and_dtypes(dtype):
    video = torch.linspace(-1, 1, 3 * 2 * 4 * 5).reshape(3, 2, 4, 5).to(dtype)
    frames = frames_to_uint8(video)
    assert frames.shape == (2, 4, 5, 3)
    assert frames.dtype == np.uint8
    assert frames.flags["C_CONTIGUOUS"]
    reference = np.round((video.double().numpy().transpose(1, 2, 3, 0) + 1) * 127.5)
    assert np.abs(frames - reference).max() <= 1


def test_input_is_untouched_and_may_need_grad():
    video = torch.randn(3, 1, 2, 2, requires_grad=True)
    before = video.detach().clone()
    frames_to_uint8(video)
    assert (video == before).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    video = torch.zeros(3, 1, 2, 2)
    video[1, 0, 1, 1] = bad
    with pytest.raises(TurbortError, match="1 of 12 decoded pixels"):
        frames_to_uint8(video)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_bytes_and_is_not_waited_for():
    video = torch.rand(3, 4, 96, 128) * 2 - 1
    expected = frames_to_uint8(video)
    there = video.cuda()
    assert (frames_to_uint8(there) == expected).all()  # the pinned memory is allocated by now, which may wait
    torch.cuda._sleep(200_000_000)
    arriving = Arriving(there)
    assert not arriving._there.query()
    assert (arriving.frames() == expected).all()
