"""One video over several NPUs of a machine: `torchrun --nproc-per-node 4 -m turbort_ascend.spread run --profile ascend910 ...`

Every rank runs `turbort run` with the same options on an NPU of its own; `compile_step` finds the HCCL group and spreads the
transformer over it (`kernels/ulysses.py`). Rank 0 writes the video, the others throw theirs away.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from turbort import InputError, Unavailable, UnavailableError

log = logging.getLogger("turbort")
_steps: list[Any] = []

START = "start it as: torchrun --nproc-per-node N -m turbort_ascend.spread run --profile ascend910 --prompt TEXT -o FILE"


def ranks() -> int:
    """Processes that compute this process's videos together; 1 without a process group."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def spread(step: Any) -> Any:
    """`step` over all ranks."""
    from turbort_ascend.kernels.ulysses import SpreadStep

    _steps.append(SpreadStep(step))
    return _steps[-1]


def place() -> tuple[int, int, int]:
    """RANK, LOCAL_RANK and WORLD_SIZE as torchrun sets them; InputError without them."""
    found = [os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    if not all(text.isdecimal() for text in found):
        raise InputError("this process is no rank of a group: RANK, LOCAL_RANK or WORLD_SIZE is not set", fix=START)
    rank, local, size = map(int, found)
    return rank, local, size


def options(arguments: Sequence[str], rank: int, local: int, folder: Path) -> list[str]:
    """What rank `rank` gives to `turbort`: the same command on its own NPU, writing into `folder` unless it leads.

    InputError for commands that are not spread.
    """
    words = [argument.partition("=")[0] for argument in arguments]
    if not words or words[0] != "run":
        raise InputError(f"only `run` is spread over NPUs, not {' '.join(arguments[:1]) or 'nothing'}", fix=START)
    if "--on" in words:
        raise InputError("--on is set by the rank", fix="leave out --on; ASCEND_RT_VISIBLE_DEVICES chooses NPUs")
    if "--prompts" in words:
        raise InputError(
            "--prompts is not spread: many videos are made sooner with one process per NPU",
            fix="start `turbort run --on ascend:0`, `--on ascend:1`, ... with a part of the file each",
        )
    mine = [*arguments, "--on", f"ascend:{local}"]
    if rank:
        mine += ["--quiet", "-o", str(folder / "rank.npy"), "--report", str(folder / "rank.report.json")]
    return mine


def join(rank: int, local: int, size: int) -> None:
    """Make this process a rank of the HCCL group of all; UnavailableError without as many NPUs."""
    from turbort_ascend.backend import Ascend

    found = Ascend().probe()
    if isinstance(found, Unavailable):
        raise UnavailableError(found.reason, fix=found.fix)
    if local >= len(found):
        raise UnavailableError(
            f"rank {rank} wants NPU {local}, and there are {len(found)}", fix=f"torchrun --nproc-per-node {len(found)} ..."
        )
    import torch
    import torch.distributed as dist

    torch.npu.set_device(local)  # type: ignore[attr-defined]
    dist.init_process_group("hccl", rank=rank, world_size=size)


def main() -> None:
    """`turbort` as one rank of a group."""
    import typer

    from turbort.cli import main as turbort
    from turbort.cli import ui

    @ui.guarded
    def begin(folder: Path) -> list[str]:
        rank, local, size = place()
        mine = options(sys.argv[1:], rank, local, folder)
        join(rank, local, size)
        return mine

    with TemporaryDirectory(prefix="turbort-rank-") as name:
        try:
            sys.argv = [sys.argv[0], *begin(Path(name))]
        except typer.Exit as ended:
            sys.exit(ended.exit_code)
        try:
            turbort()
        finally:
            if not _steps and os.environ["RANK"] == "0":
                log.warning("the transformer was not spread: its weights are streamed from the host, or the run ended early")
            leave()


def leave() -> None:
    """End the process group."""
    import torch.distributed as dist

    _steps.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    # Under its import name, so that `compile_step` and this process share one module.
    from turbort_ascend.spread import main as entry

    entry()
