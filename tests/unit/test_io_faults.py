"""Faults in the middle of a write: nothing half-written stays, and a file that had the name is untouched."""

import errno
import os
import re

import numpy as np
import pytest

from tests.unit.limits import file_size_limit
from turbort.errors import InputError
from turbort.io import FORMATS, atomic_bytes, atomic_text, open_writer
from turbort.io.atomic import Sink

SUFFIXES = sorted(FORMATS)
WIDTH, HEIGHT = 128, 96


def noise(frames=24):
    """Frames that no format compresses below a megabyte in all."""
    return np.random.default_rng(0).integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8)


def previous(tmp_path, suffix):
    """An earlier result under the same name, and a way to look at everything in the folder."""
    path = tmp_path / f"out{suffix}"
    if suffix == ".png":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "00000.png").write_bytes(b"old")
    else:
        path.write_bytes(b"old")
    return path


def write(path, video, then=None):
    """Write frame by frame, then call `then(writer)` inside the block."""
    with open_writer(path, WIDTH, HEIGHT, 16) as writer:
        for frame in video:
            writer.write(frame[None])
        if then:
            then(writer)


def everything(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_in_the_middle(tmp_path, suffix):
    path = previous(tmp_path, suffix)
    before = everything(tmp_path)
    # One noise frame as PNG is over 32 KiB, so every format crosses the limit after its first bytes.
    with file_size_limit(32 * 1024), pytest.raises(InputError, match="disk is full") as caught:
        write(path, noise())
    assert caught.value.exit_code == 2
    assert "nothing was left behind" in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npy"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_at_the_very_end(tmp_path, suffix, call, monkeypatch):
    path = previous(tmp_path, suffix)
    before = everything(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"turbort.io.atomic.os.{call}", full)
    with pytest.raises(InputError, match="disk is full"):
        write(path, noise(2))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_exception_in_the_block(tmp_path, suffix, stop):
    path = previous(tmp_path, suffix)
    before = everything(tmp_path)

    def fail(_):
        raise stop

    with pytest.raises(stop):
        write(path, noise(3), then=fail)
    assert everything(tmp_path) == before
    assert not list(tmp_path.rglob(".turbort-*"))


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npy"])
def test_ctrl_c_inside_a_write_is_not_swallowed(tmp_path, suffix):
    """PyAV drops KeyboardInterrupt raised in its write callback; the writer must raise it all the same."""

    class Interrupted:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(self.file, name)

    path = previous(tmp_path, suffix)
    before = everything(tmp_path)

    def interrupt(writer):
        writer._sink._file = Interrupted(writer._sink._file)
        writer.write(noise())

    with pytest.raises(KeyboardInterrupt):
        write(path, (), then=interrupt)
    assert everything(tmp_path) == before


def test_failing_folder_swap_restores_the_old_frames(tmp_path, monkeypatch):
    path = previous(tmp_path, ".png")
    before = everything(tmp_path)
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EACCES, "no")
        rename(source, target)

    monkeypatch.setattr("turbort.io.atomic.os.rename", second_fails)
    with pytest.raises(InputError, match="cannot write"):
        write(path, noise(2))
    assert len(calls) == 3
    assert everything(tmp_path) == before


def test_npy_that_cannot_fit_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="disk is full"), open_writer(tmp_path / "out.npy", 10**5, 10**5, 16, frames_hint=10**6):
        pytest.fail("the block must not be entered")
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written(tmp_path, code, monkeypatch):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(InputError, match=re.escape(os.strerror(code))) as caught:
        open_writer(tmp_path / "out.mp4", WIDTH, HEIGHT, 16)
    assert caught.value.fix


def test_atomic_text_round_trip_and_fault(tmp_path):
    path = tmp_path / "report.json"
    assert atomic_text(path, "größe: 1\n") == path
    assert path.read_bytes() == "größe: 1\n".encode()
    with file_size_limit(1000), pytest.raises(InputError, match="disk is full"):
        atomic_text(path, "x" * 2000)
    assert everything(tmp_path) == {"report.json": "größe: 1\n".encode()}


def test_atomic_bytes_into_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="mkdir -p"):
        atomic_bytes(tmp_path / "no" / "x.bin", b"")


def test_sink_loops_over_short_writes(tmp_path):
    """An unbuffered file may take fewer bytes than it is given."""

    class Short:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:3])

        def __getattr__(self, name):
            return getattr(self.file, name)

    sink = Sink(tmp_path / "x.bin")
    sink._file = Short(sink._file)
    assert sink.write(b"0123456789") == 10
    sink.commit()
    assert (tmp_path / "x.bin").read_bytes() == b"0123456789"


def test_a_discarded_sink_takes_no_more(tmp_path):
    sink = Sink(tmp_path / "x.bin")
    sink.discard()
    sink.discard()
    with pytest.raises(OSError, match="earlier write failed"):
        sink.write(b"x")
    assert everything(tmp_path) == {}
