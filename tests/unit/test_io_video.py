"""Videos: what is read back, the same bytes twice, streaming, names and refusals."""

import subprocess
import sys

import av
import numpy as np
import pytest

from turbort.errors import InputError, TurbortError
from turbort.io import FORMATS, check_writable, open_writer

SUFFIXES = sorted(FORMATS)
WIDTH, HEIGHT, FRAMES, FPS = 64, 48, 9, 16


def clip(frames=FRAMES, width=WIDTH, height=HEIGHT):
    """A red square moving right over blue, with a yellow bar: flat colours survive 4:2:0."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[:] = (40, 80, 160)
    video[:, -8:] = (250, 230, 20)
    for t in range(frames):
        video[t, 16:32, 2 * t : 2 * t + 16] = (255, 0, 0)
    return video


def write(path, video, chunks=(1, 4, 4), **options):
    with open_writer(path, video.shape[2], video.shape[1], FPS, **options) as writer:
        start = 0
        for size in chunks:
            writer.write(video[start : start + size])
            start += size
    assert writer.frames == start
    return writer.path


def read(path):
    if path.is_dir():
        return np.concatenate([read(frame) for frame in sorted(path.iterdir())])
    if path.suffix == ".npy":
        return np.load(path)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def content(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.read_bytes()) for file in files]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_come_back(tmp_path, suffix):
    video = clip()
    back = read(write(tmp_path / f"out{suffix}", video))
    assert back.shape == video.shape
    error = np.abs(back.astype(int) - video)
    if suffix == ".mp4":
        assert error.mean() < 6
        for y, x in ((24, 8), (4, 60), (44, 30)):
            assert error[0, y, x].max() <= 6, "colours of flat regions must survive the conversion to YUV and back"
    else:
        assert error.max() == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_frames_give_the_same_bytes_however_they_are_chunked(tmp_path, suffix):
    video = clip()
    first = write(tmp_path / f"out{suffix}", video, metadata={"title": "a red square"})
    expected = content(first)
    assert content(write(tmp_path / f"out{suffix}", video, chunks=(9,), metadata={"title": "a red square"})) == expected
    video[3, 20, 20] ^= 255
    assert content(write(tmp_path / f"out{suffix}", video)) != expected


def test_nothing_but_the_result_is_left(tmp_path):
    for suffix in SUFFIXES:
        write(tmp_path / f"{suffix[1:]}{suffix}", clip())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["gif.gif", "mp4.mp4", "npy.npy", "png"]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_timing(tmp_path, suffix):
    with av.open(str(write(tmp_path / f"out{suffix}", clip()))) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert times == pytest.approx([t / FPS for t in range(FRAMES)], abs=0.0051)


def test_mp4_keeps_title_and_comment_and_names_no_encoder_or_date(tmp_path):
    path = write(tmp_path / "out.mp4", clip(), metadata={"title": "a red square", "comment": "seed 7"})
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "a red square"
        assert container.metadata["comment"] == "seed 7"
        assert not {"encoder", "creation_time"} & set(container.metadata)


def test_npy_can_be_mapped(tmp_path):
    path = write(tmp_path / "out.npy", clip())
    mapped = np.load(path, mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert (mapped == clip()).all()


def test_one_png_frame_is_a_picture_of_the_given_name(tmp_path):
    path = write(tmp_path / "still.png", clip(1), chunks=(1,))
    assert path == tmp_path / "still.png"
    assert [entry.name for entry in tmp_path.iterdir()] == ["still.png"]
    assert (read(path)[0] == clip(1)[0]).all()


def test_png_folder_replaces_older_frames_but_nothing_else(tmp_path):
    write(tmp_path / "out.png", clip())
    path = write(tmp_path / "out.png", clip(5), chunks=(5,))
    assert sorted(frame.name for frame in path.iterdir()) == [f"{i:05d}.png" for i in range(5)]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        check_writable(tmp_path / "out.png")
    with pytest.raises(InputError, match=r"notes\.txt"):
        write(tmp_path / "out.png", clip())
    assert (path / "notes.txt").read_text() == "mine"


def test_png_folder_that_fills_with_other_files_meanwhile_is_kept(tmp_path):
    writer = open_writer(tmp_path / "out.png", WIDTH, HEIGHT, FPS)
    writer.__enter__().write(clip())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "late.txt").write_text("mine")
    with pytest.raises(InputError, match=r"late\.txt"):
        writer.__exit__(None, None, None)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["out", "late.txt"]


def test_a_link_is_followed_not_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "far" / "real.npy")
    write(tmp_path / "out.npy", clip())
    assert (tmp_path / "out.npy").is_symlink()
    assert (read(tmp_path / "far" / "real.npy") == clip()).all()


def test_permissions_follow_the_umask(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert write(tmp_path / "out.mp4", clip()).stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("name", "size", "fps", "words"),
    [
        ("out.avi", (64, 48), 16, "unknown video format '.avi'"),
        ("out", (64, 48), 16, "unknown video format"),
        ("none/out.mp4", (64, 48), 16, "does not exist"),
        ("file/out.mp4", (64, 48), 16, "is not a folder"),
        ("folder.mp4", (64, 48), 16, "it is a folder"),
        ("out.mp4", (63, 48), 16, "odd side"),
        ("out.gif", (64, 48), 60, "hundredths"),
        ("out.mp4", (0, 48), 16, "0x48"),
        ("out.mp4", (64, 48), 0, "0 frames per second"),
        ("out.mp4", (64, 48), float("nan"), "nan frames per second"),
    ],
)
def test_refusals_come_before_work_with_a_fix(tmp_path, name, size, fps, words):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=words) as caught:
        check_writable(tmp_path / name, *size, fps)
    assert caught.value.fix
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_check_writable_leaves_an_existing_file_alone(tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"old")
    assert check_writable(tmp_path / "out.mp4") == tmp_path / "out.mp4"
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_frames_is_an_error(tmp_path, suffix):
    with pytest.raises(TurbortError, match="no frame"), open_writer(tmp_path / f"out{suffix}", WIDTH, HEIGHT, FPS):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [clip().astype(np.float32), clip()[0], clip(width=32), clip()[..., :1]])
def test_wrong_frames_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="uint8"), open_writer(tmp_path / "out.npy", WIDTH, HEIGHT, FPS) as writer:
        writer.write(bad)
    assert list(tmp_path.iterdir()) == []


def test_importing_and_checking_needs_neither_torch_nor_av(tmp_path):
    code = f"""
import sys, turbort.io
turbort.io.check_writable({str(tmp_path / "out.mp4")!r})
turbort.io.atomic_text({str(tmp_path / "report.json")!r}, "x")
assert not {{"torch", "av", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
