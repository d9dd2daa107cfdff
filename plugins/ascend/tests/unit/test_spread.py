"""What a rank does with its command line, and which groups a model can be spread over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from turbort_ascend import spread

from turbort.errors import InputError

RUN = ["run", "--profile", "ascend910", "--prompt", "a red circle moves right", "-o", "out.mp4"]


def test_the_leading_rank_runs_the_command_on_its_npu(tmp_path: Path) -> None:
    assert spread.options(RUN, 0, 0, tmp_path) == [*RUN, "--on", "ascend:0"]


def test_other_ranks_write_nothing_of_the_users(tmp_path: Path) -> None:
    mine = spread.options(RUN, 5, 1, tmp_path)
    assert mine[: len(RUN)] == RUN
    assert mine[len(RUN) : len(RUN) + 2] == ["--on", "ascend:1"]
    written = [mine[place + 1] for place, word in enumerate(mine) if word in ("-o", "--report")]
    assert written[1:] == [str(tmp_path / "rank.npy"), str(tmp_path / "rank.report.json")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "not nothing"),
        (["check", "ascend"], "not check"),
        ([*RUN, "--on=cpu"], "--on"),
        ([*RUN, "--prompts", "f"], "--prompts"),
    ],
)
def test_what_is_not_spread_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        spread.options(arguments, 0, 0, tmp_path)


def test_without_torchrun_it_says_how_to_start_and_ends_with_2(tmp_path: Path) -> None:
    import os

    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "turbort_ascend.spread", *RUN]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment, cwd=tmp_path)
    assert answer.returncode == 2
    assert "torchrun --nproc-per-node N -m turbort_ascend.spread" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_number_of_npus_that_does_not_divide_the_heads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from turbort_ascend.kernels import ulysses

    from turbort.models.spec import MODELS
    from turbort.models.wan_dit import WanDit

    monkeypatch.setattr(ulysses.dist, "get_world_size", lambda group=None: 8)
    monkeypatch.setattr(ulysses.dist, "get_rank", lambda group=None: 0)
    import torch

    with torch.device("meta"):
        model = WanDit(MODELS["wan2.1-t2v-1.3b"].dit)
    with pytest.raises(InputError, match="8 NPUs do not divide the model's 12 heads") as refused:
        ulysses.SpreadStep(model)
    assert "1, 2, 3, 4, 6, 12 NPUs" in str(refused.value.fix)
