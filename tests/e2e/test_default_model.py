"""What a newcomer runs: the embedded model under the CPU's profile, judged by reading shape, colour and motion off the frames."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from recipes.tiny_shapes.captions import parse
from recipes.tiny_shapes.oracle import judge
from turbort.job import Job
from turbort.models.spec import get_model
from turbort.profile import load_profile
from turbort.session import Session

# One object each: the model card says 97 % of such clips are right, so five of six leave room for another CPU's rounding.
CAPTIONS = (
    "a red circle moves right",
    "a blue square grows",
    "a green star moves down",
    "a yellow triangle moves left",
    "a purple square rotates",
    "a cyan star moves up",
)


def read_video(path: Path) -> np.ndarray:
    """uint8 frames [T, H, W, 3] of a video file."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_the_demo_prompt_makes_a_file_that_shows_what_it_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "turbort", "run", "--prompt", CAPTIONS[0], "-o", "out.mp4", "--quiet"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    frames = read_video(tmp_path / "out.mp4")
    assert frames.shape == (33, 128, 128, 3)
    assert judge(frames, parse(CAPTIONS[0])).fully_right
    report = json.loads((tmp_path / "out.report.json").read_text(encoding="utf-8"))
    ran = {(row["op"], row["precision"]) for row in report["executed"]}
    assert ("linear", "w8a8") in ran
    assert any(op == "sla_attention" for op, _ in ran)
    assert not report["fallbacks"]


@pytest.mark.slow
def test_clips_show_what_their_captions_say() -> None:
    jobs = [Job(caption, seed=number) for number, caption in enumerate(CAPTIONS)]
    with Session.open(get_model("tiny"), load_profile("cpu"), jobs=jobs) as session:
        clips = [result.frames for result in session.generate(jobs)]
    right = [judge(frames, parse(caption)).fully_right for frames, caption in zip(clips, CAPTIONS, strict=True)]
    assert sum(right) >= len(CAPTIONS) - 1, dict(zip(CAPTIONS, right, strict=True))
