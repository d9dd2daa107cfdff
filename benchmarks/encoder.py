"""`python -m benchmarks.encoder`: x264's presets on a clip like people's and on noise: time, size, closeness to the frames.

For every setting 81 frames of 832x480 are written through the product's own mp4 writer: wall and processor seconds, the part of
the wall time that is left when the last frame has been handed over (nothing hides it), MiB, and PSNR and SSIM of what a player
shows against the frames. Storing colour at half resolution loses something by itself: the row "4:2:0 alone" is the most that any
setting can reach. A second table is the cost of RGB to YUV.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.clip import moving_scene
from benchmarks.machine import ROOT, commit, describe_machine

if TYPE_CHECKING:
    from benchmarks.clip import Frames

SIZE = (81, 480, 832)
PRESETS = ("medium", "fast", "veryfast", "superfast")
CRF, THREADS = ("16", "13", "14", "18"), ("4", "8")
CLIPS = ("clean", "grain", "noise")
EVERY = 8
"""Frames judged: every eighth."""
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Row:
    """One setting on one clip."""

    clip: str
    options: str
    seconds: float
    cpu_seconds: float
    tail_seconds: float
    mib: float
    psnr: float
    ssim_rgb: float
    ssim_luma: float


def encode(clip: str, frames: Frames, options: Mapping[str, str], folder: Path, repeats: int) -> Row:
    """The fastest of `repeats` encodings with these options of x264."""
    from turbort.io import encoded, open_writer

    path = folder / "video.mp4"
    times: list[tuple[float, float, float]] = []
    kept, encoded.X264 = encoded.X264, dict(options)
    try:
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            with open_writer(path, frames.shape[2], frames.shape[1], 16) as writer:
                for frame in frames:
                    writer.write(frame[None])
                last = time.perf_counter()
            end = time.perf_counter()
            times.append((end - wall, time.process_time() - cpu, end - last))
    finally:
        encoded.X264 = kept
    said = " ".join(f"{key}={value}" for key, value in options.items())
    return Row(clip, said, *min(times), path.stat().st_size / 2**20, *_quality(frames[::EVERY], _read(path)[::EVERY]))


def halved(clip: str, frames: Frames) -> Row:
    """What a player shows of frames that were stored at 4:2:0 and not compressed: the limit of every setting."""
    import av

    from turbort.io.encoded import to_yuv420p

    few = frames[::EVERY]
    rgb = (av.VideoFrame.from_ndarray(image, format="rgb24") for image in few)
    shown = [to_yuv420p(frame, frames.shape[1]).to_ndarray(format="rgb24") for frame in rgb]
    return Row(clip, "4:2:0 alone", 0.0, 0.0, 0.0, 1.5 * frames.size / 3 / 2**20, *_quality(few, np.stack(shown)))


def _read(path: Path) -> Frames:
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _quality(reference: Frames, other: Frames) -> tuple[float, float, float]:
    """PSNR in dB and mean SSIM over the channels, and mean SSIM of the luma, which is what encoders are usually judged by."""
    from turbort.quality.metrics import psnr, ssim_of_frames

    luma = [(video @ np.array(LUMA))[..., None] for video in (reference, other)]
    return psnr(reference, other), float(np.mean(ssim_of_frames(reference, other))), float(np.mean(ssim_of_frames(*luma)))


def conversions(frames: Frames) -> dict[str, float]:
    """Processor milliseconds per frame of each way from RGB to 4:2:0 on this machine's processor."""
    import av
    import torch

    from turbort.io.encoded import to_yuv420p

    def swscale() -> None:
        for image in frames:
            to_yuv420p(av.VideoFrame.from_ndarray(image, format="rgb24"), image.shape[0])

    def wrapped() -> None:
        for image in frames:
            av.VideoFrame.from_ndarray(image, format="rgb24")

    planes = [np.zeros((image.shape[0] * 3 // 2, image.shape[1]), np.uint8) for image in frames]

    def from_planes() -> None:
        for image in planes:
            av.VideoFrame.from_ndarray(image, format="yuv420p")

    matrix = torch.tensor([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255

    def with_torch() -> None:
        for image in frames:
            wide = torch.from_numpy(image).permute(2, 0, 1).float()
            luma = torch.einsum("c,chw->hw", matrix[0], wide).add_(16)
            chroma = torch.einsum("kc,chw->khw", matrix[1:], torch.nn.functional.avg_pool2d(wide, 2)).add_(128)
            luma.round_().to(torch.uint8), chroma.round_().to(torch.uint8)

    found: dict[str, float] = {}
    for name, call in (
        ("VideoFrame of RGB", wrapped),
        ("VideoFrame of RGB + swscale to yuv420p", swscale),
        ("VideoFrame of planes", from_planes),
        ("torch on the CPU to planes", with_torch),
    ):
        turns = []
        for _ in range(3):
            started = time.process_time()
            call()
            turns.append((time.process_time() - started) / len(frames) * 1e3)
        found[name] = min(turns)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__)
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--crf", default=",".join(CRF), help="every value with the first of --threads; the first value with all")
    parser.add_argument("--threads", default=",".join(THREADS))
    parser.add_argument("--clips", default=",".join(CLIPS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "encoder.json")
    args = parser.parse_args()
    rows = []
    machine = describe_machine()
    made = {name: _clip(name) for name in args.clips.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        for name, frames in made.items():
            rows.append(halved(name, frames))
            print(_line(rows[-1]), flush=True)
            for options in _settings(args.presets.split(","), args.crf.split(","), args.threads.split(",")):
                rows.append(encode(name, frames, options, Path(folder), 1 if name == "noise" else args.repeats))
                print(_line(rows[-1]), flush=True)
    found = conversions(next(iter(made.values()))[:24])
    for what, ms in found.items():
        print(f"{what:<44} {ms:.2f} ms of a processor a frame")
    document = {"machine": machine, "commit": commit(), "rows": [asdict(row) for row in rows], "conversions_ms": found}
    args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _settings(presets: Sequence[str], crf: Sequence[str], threads: Sequence[str]) -> list[dict[str, str]]:
    pairs = [(value, threads[0]) for value in crf] + [(crf[0], count) for count in threads[1:]]
    return [{"crf": value, "preset": preset, "threads": count} for preset in presets for value, count in pairs]


def _clip(name: str) -> Frames:
    if name == "noise":
        return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    return moving_scene(*SIZE, grain=0.0) if name == "clean" else moving_scene(*SIZE)


def _line(row: Row) -> str:
    return (
        f"{row.clip:<6} {row.options:<44} {row.seconds:6.2f} s, cpu {row.cpu_seconds:6.2f} s, tail {row.tail_seconds:5.2f} s, "
        f"{row.mib:6.2f} MiB, PSNR {row.psnr:5.2f} dB, SSIM {row.ssim_rgb:.4f}, of luma {row.ssim_luma:.4f}"
    )


if __name__ == "__main__":
    main()
