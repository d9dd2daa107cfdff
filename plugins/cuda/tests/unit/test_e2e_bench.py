"""The end-to-end benchmark: what it encodes in the place of noise, and that everything before the encoder still runs."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks.clip import moving_scene
from benchmarks.cuda.e2e import encoding
from turbort.job import Job
from turbort.output import decode

FRAMES, HEIGHT, WIDTH = 5, 32, 48


class Decoder:
    def decode_stream(self, latents, *, chunk):
        for start in range(0, latents.shape[2], chunk):
            yield torch.full((1, 3, min(chunk, latents.shape[2] - start), HEIGHT, WIDTH), 0.5)


def written(path):
    decode(Decoder(), torch.zeros(1, 4, FRAMES, 2, 2), Job("", width=WIDTH, height=HEIGHT, out=path), 2, lambda *_: None)
    return np.load(path)


def test_the_scene_is_encoded_inside_the_block_only(tmp_path):
    scene = moving_scene(FRAMES, HEIGHT, WIDTH)
    with encoding(scene):
        assert (written(tmp_path / "x.npy") == scene).all()
    with encoding(None):
        assert (written(tmp_path / "x.npy") == 191).all()
    with pytest.raises(ZeroDivisionError), encoding(scene):
        raise ZeroDivisionError
    assert (written(tmp_path / "x.npy") == 191).all()


def test_the_scene_moves_and_is_the_same_every_time():
    scene = moving_scene(FRAMES, HEIGHT, WIDTH, grain=0.0)
    assert scene.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert (scene == moving_scene(FRAMES, HEIGHT, WIDTH, grain=0.0)).all()
    assert all((a != b).mean() > 0.1 for a, b in pairwise(scene))
