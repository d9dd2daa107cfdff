"""Decoding into a file: a failure on either side is raised, ends the writer's thread and leaves no file."""

import threading

import numpy as np
import pytest
import torch

from tests.unit.limits import file_size_limit
from turbort.errors import InputError
from turbort.io import frames_to_uint8, open_writer
from turbort.job import Job
from turbort.output import decode

WIDTH, HEIGHT, FRAMES = 128, 96, 8


PATIENCE = 60.0
"""Seconds until a thread that does not come is given up; only a failing test waits so long."""


class Decoder:
    """Pixels that were made before, one frame of noise for each latent frame; `before` is called ahead of each chunk."""

    def __init__(self, before=lambda start: None, fail=None):
        self.pixels = torch.rand(1, 3, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.before, self.fail = before, fail

    def decode_stream(self, latents, *, chunk):
        for start in range(0, latents.shape[2], chunk):
            if self.fail is not None and start:
                raise self.fail
            self.before(start)
            yield self.pixels[:, :, start : start + chunk]


def job(path):
    return Job("", width=WIDTH, height=HEIGHT, frames=FRAMES, fps=16, out=path)


def run(decoder, path, chunk=1, told=lambda done, total: None):
    return decode(decoder, torch.zeros(1, 4, FRAMES, 2, 2), job(path), chunk, told)


def writers():
    """Threads that still write; one that has said that it is done gets a moment to go."""
    found = [thread for thread in threading.enumerate() if thread.name == "turbort-writer"]
    for thread in found:
        thread.join(PATIENCE)
    return [thread for thread in found if thread.is_alive()]


def test_a_file_has_the_bytes_of_plain_writing_whatever_the_chunk(tmp_path):
    with open_writer(tmp_path / "plain.mp4", WIDTH, HEIGHT, 16) as writer:
        writer.write(frames_to_uint8(Decoder().pixels[0]))
    for chunk in (1, 3, FRAMES):
        told = []
        path, frames = run(Decoder(), tmp_path / "x.mp4", chunk, lambda done, total: told.append((done, total)))  # noqa: B023
        assert (path, frames) == (tmp_path / "x.mp4", None)
        assert path.read_bytes() == (tmp_path / "plain.mp4").read_bytes()
        parts = -(-FRAMES // chunk)
        assert told == [(index + 1, parts) for index in range(parts)]


def test_a_job_without_a_file_gets_its_frames():
    path, frames = run(Decoder(), None, 3)
    assert path is None
    assert (frames == frames_to_uint8(Decoder().pixels[0])).all()
    assert frames.dtype == np.uint8


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npy", ".png"])
def test_a_full_disk(tmp_path, suffix):
    with file_size_limit(16 * 1024), pytest.raises(InputError, match="disk is full") as caught:
        run(Decoder(), tmp_path / f"x{suffix}")
    assert caught.value.exit_code == 2
    assert "nothing was left behind" in str(caught.value)
    assert not writers()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fail", [KeyboardInterrupt(), RuntimeError("out of memory"), SystemExit(3)])
def test_a_decoder_that_fails_after_its_first_chunk(tmp_path, fail):
    with pytest.raises(type(fail)) as caught:
        run(Decoder(fail=fail), tmp_path / "x.mp4")
    assert caught.value is fail
    assert not writers()
    assert list(tmp_path.iterdir()) == []


def test_each_chunk_is_encoded_while_the_next_one_is_decoded(tmp_path, monkeypatch):
    """Neither goes on before the other has come; one after the other, they would never meet."""
    both, written = threading.Barrier(2, timeout=PATIENCE), []

    def append(self, frames):
        if len(written) < FRAMES - 1:
            both.wait()
        written.append(frames)

    monkeypatch.setattr("turbort.io.npy.NpyWriter._append", append)
    run(Decoder(before=lambda start: start and both.wait()), tmp_path / "x.npy")
    assert len(written) == FRAMES
