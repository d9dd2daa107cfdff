"""Writing on a thread of its own: the same bytes, no more than a few chunks ahead, and every failure as without the thread."""

import itertools
import os
import signal
import sys
import threading
import time

import pytest
import torch

from turbort.errors import InputError, TurbortError
from turbort.io import FORMATS, background, frames_to_uint8, open_writer, write_behind
from turbort.io.background import ROOM

SUFFIXES = sorted(FORMATS)
WIDTH, HEIGHT = 64, 48
PATIENCE = 20.0
"""Seconds after which a test that waits for the other thread gives up; nothing here takes long unless it is broken."""
FULL = InputError("the disk is full", fix="free some")


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C raises, also where the tests were started in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def chunks(count=4, frames=3):
    """Pixels [3, T, H, W], different in every frame."""
    torch.manual_seed(0)
    base = torch.rand(3, 1, HEIGHT, WIDTH) * 2 - 1
    return [torch.cat([base.roll(3 * (index * frames + t), dims=3) for t in range(frames)], dim=1) for index in range(count)]


def writing(folder, before=lambda frames: None):
    """A writer into `folder` that calls `before` with the frames of every write."""
    writer = open_writer(folder / "x.npy", WIDTH, HEIGHT, 16)
    append = writer._append

    def first_before(frames):
        before(frames)
        append(frames)

    writer._append = first_before
    return writer


def then_raise(given, error):
    """Chunks whose maker fails after the last."""
    yield from given
    raise error


def writers():
    """Threads that still write; one that has said that it is done, or has been told to stop, gets time to go."""
    found = [thread for thread in threading.enumerate() if thread.name == "turbort-writer" and thread.is_alive()]
    for thread in found:
        thread.join(PATIENCE)
    return [thread for thread in found if thread.is_alive()]


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_bytes_are_those_of_writing_without_a_thread(tmp_path, suffix):
    for name in ("plain", "thread"):
        (tmp_path / name).mkdir()
    with open_writer(tmp_path / "plain" / f"x{suffix}", WIDTH, HEIGHT, 16) as writer:
        for chunk in chunks():
            writer.write(frames_to_uint8(chunk))
    write_behind(open_writer(tmp_path / "thread" / f"x{suffix}", WIDTH, HEIGHT, 16), chunks())
    assert content(tmp_path / "plain") == content(tmp_path / "thread")
    assert not writers()


def test_writing_goes_on_while_the_next_chunk_is_made(tmp_path):
    """Each side waits for the other to be in the middle of its work, which only two threads at once can do."""
    making, taking = threading.Event(), threading.Event()

    def before(frames):
        taking.set()
        assert making.wait(PATIENCE)

    def made():
        first, second = chunks(2)
        yield first
        assert taking.wait(PATIENCE)
        making.set()
        yield second

    write_behind(writing(tmp_path, before), made())


def test_no_more_than_a_few_chunks_wait(tmp_path):
    taken, go, handed = [], threading.Event(), []

    def before(frames):
        assert go.wait(PATIENCE)
        taken.append(frames)

    def counted():
        for chunk in chunks(5):
            yield chunk
            handed.append(chunk)

    other = threading.Thread(target=write_behind, args=(writing(tmp_path, before), counted()))
    other.start()
    deadline = time.monotonic() + PATIENCE
    while len(handed) < ROOM and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)
    assert (len(handed), taken) == (ROOM, [])
    go.set()
    other.join(PATIENCE)
    assert (len(handed), len(taken)) == (5, 15)


@pytest.mark.parametrize("count", [1, ROOM, 12])
@pytest.mark.parametrize("error", [FULL, MemoryError("no"), KeyboardInterrupt()])
def test_what_writing_raises_is_raised_here_and_nothing_more_is_written(tmp_path, count, error):
    """With one chunk it comes at the end of the block, with many it comes from `put`; neither waits for ever."""
    taken = []

    def before(frames):
        taken.append(frames)
        raise error

    with pytest.raises(type(error)) as caught:
        write_behind(writing(tmp_path, before), chunks(count))
    assert caught.value is error
    assert len(taken) == 1
    assert not writers()
    assert content(tmp_path) == {}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError(), SystemExit()])
def test_an_exception_of_the_chunks_ends_the_thread_and_leaves_no_file(tmp_path, stop):
    (tmp_path / "x.mp4").write_bytes(b"old")
    with pytest.raises(type(stop)):
        write_behind(open_writer(tmp_path / "x.mp4", WIDTH, HEIGHT, 16), then_raise(chunks(1), stop))
    assert not writers()
    assert content(tmp_path) == {"x.mp4": b"old"}


def test_an_error_of_the_chunks_is_not_hidden_by_one_of_the_thread(tmp_path):
    failed = threading.Event()

    def before(frames):
        failed.set()
        raise FULL

    def made():
        yield from chunks(1)
        assert failed.wait(PATIENCE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_behind(writing(tmp_path, before), made())
    assert not writers()


def test_ctrl_c_while_the_encoder_is_waited_for(tmp_path):
    """All chunks are made; the frame that is being written is finished and the rest is left."""
    taken = []

    def before(frames):
        if not taken:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        taken.append(frames)

    with pytest.raises(KeyboardInterrupt):
        write_behind(writing(tmp_path, before), chunks(count=1, frames=1000))
    assert 1 <= len(taken) < 1000
    assert not writers()
    assert content(tmp_path) == {}


@pytest.mark.parametrize("times", [1, 2, 5])
def test_more_ctrl_c_while_the_file_is_deleted(tmp_path, monkeypatch, times):
    wait, left = background._Writing.wait, 1 + times

    def interrupted_wait(self):
        nonlocal left
        if self.queue.qsize() and left:  # the first one while a chunk is written, all others while the file is deleted
            left -= 1
            raise KeyboardInterrupt
        return wait(self)

    monkeypatch.setattr(background._Writing, "wait", interrupted_wait)
    with pytest.raises(KeyboardInterrupt):
        write_behind(writing(tmp_path, lambda frames: time.sleep(0.1)), chunks(count=1, frames=9))
    assert left == 0
    assert not writers()
    assert content(tmp_path) == {}


def interrupted(at, call):
    """Whether `call()` came to the `at`-th line of its module, or call that the module makes, and was interrupted there."""
    left = at

    def trace(frame, event, argument):
        nonlocal left
        ours, called = (f is not None and f.f_code.co_filename == background.__file__ for f in (frame, frame.f_back))
        left -= (ours and event == "line") or (called and event == "call")
        if left == 0:
            raise KeyboardInterrupt
        return trace if ours else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def test_ctrl_c_at_every_line(tmp_path):
    """Wherever it comes, nothing is left behind; after the last frame the whole file may be there."""
    (tmp_path / "whole").mkdir()
    write_behind(writing(tmp_path / "whole"), chunks(2))
    whole = content(tmp_path / "whole")
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        reached = interrupted(at, lambda folder=folder: write_behind(writing(folder), chunks(2)))
        assert not writers()
        assert content(folder) in (({}, whole) if reached else (whole,))
        if not reached:
            break
    assert at > 50  # places that were interrupted


def test_pixels_that_are_not_numbers_are_refused_as_before(tmp_path):
    first, second = chunks(2)
    second[0, 1, 5, 5] = float("nan")
    with pytest.raises(TurbortError, match=f"1 of {second.numel()} decoded pixels are not finite numbers"):
        write_behind(open_writer(tmp_path / "x.mp4", WIDTH, HEIGHT, 16), (first, second))
    assert content(tmp_path) == {}


def test_a_file_that_cannot_be_opened_or_has_no_frames(tmp_path):
    huge = open_writer(tmp_path / "x.npy", 10**5, 10**5, 16, frames_hint=10**6)
    with pytest.raises(InputError, match="disk is full"):
        write_behind(huge, chunks(6))
    with pytest.raises(TurbortError, match="no frame"):
        write_behind(writing(tmp_path), ())
    assert content(tmp_path) == {}


def test_a_thread_that_cannot_start_leaves_no_file(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        write_behind(writing(tmp_path), then_raise((), AssertionError("nothing must be made")))
    assert content(tmp_path) == {}


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize("opened", [True, False])
def test_a_write_that_is_stopped_ends_silently(suffix, opened, tmp_path, capfd):
    """PyAV prints what a file raises while its container is closed, and a container has several calls left to make then."""
    pytest.importorskip("av")
    writer = open_writer(tmp_path / f"x{suffix}", WIDTH, HEIGHT, 16)
    given = chunks(6 if opened else 0, frames=8)
    with pytest.raises(torch.OutOfMemoryError):
        write_behind(writer, then_raise(given, torch.OutOfMemoryError("CUDA out of memory")))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""
