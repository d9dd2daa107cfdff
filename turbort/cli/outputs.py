"""Where the videos of a run go, and which of them are there already from an earlier run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.errors import InputError

if TYPE_CHECKING:
    from turbort.job import Job
    from turbort.models.spec import ModelSpec


def number_outputs(jobs: Sequence[Job], out: Path) -> list[Job]:
    """Jobs with a file each: their own `out`, or `out-000.mp4`, `out-001.mp4`, ... by their place in the file."""
    width = max(3, len(str(len(jobs) - 1)))
    named = [
        replace(job, out=job.out or out.with_name(f"{out.stem}-{index:0{width}d}{out.suffix}")) for index, job in enumerate(jobs)
    ]
    seen: dict[Path, int] = {}
    for index, job in enumerate(named):
        assert job.out is not None  # given one line above
        key = job.out.absolute()
        if key in seen:
            raise InputError(
                f"jobs {seen[key] + 1} and {index + 1} both write {job.out}", fix='give each job an "out" of its own'
            )
        seen[key] = index
    return named


def check_outputs(jobs: Sequence[Job], spec: ModelSpec, more: Sequence[Path]) -> None:
    """InputError now for what would fail at the end: unknown suffix, missing or read-only folder."""
    from turbort.io import check_writable, resolve_target

    for job in jobs:
        full = job.resolved(spec)
        assert full.out is not None  # every job of a run has a file
        check_writable(full.out, full.width or 0, full.height or 0, full.fps or 1)
    for path in more:
        resolve_target(path)


class Ledger:
    """A JSON-lines file beside the videos that says which job made each, so that a second run can skip them.

    A job counts as finished when its file exists and the line for that file has the same key. `what` is everything
    besides the job that decides its frames (model, profile, backend).
    """

    def __init__(self, path: Path, spec: ModelSpec, what: Sequence[str]) -> None:
        self.path = path
        self._spec = spec
        self._what = list(what)
        self._known = _read(path)

    def key(self, job: Job) -> str:
        """Digest of everything that decides the frames of a job."""
        full = {name: value for name, value in asdict(job.resolved(self._spec)).items() if name != "out"}
        if job.image is not None:
            full["image"] = hashlib.sha256(job.image.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps([self._what, full], sort_keys=True).encode()).hexdigest()[:16]

    def finished(self, job: Job) -> bool:
        """Whether the video of this very job is there."""
        return self._known.get(str(job.out)) == self.key(job) and path_of(job).exists()

    def add(self, job: Job) -> None:
        """Note a finished job. A line is appended whole, so an interrupted run loses at most its last line."""
        line = json.dumps({"out": str(job.out), "key": self.key(job), "prompt": job.prompt, "seed": job.seed}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self._known[str(job.out)] = self.key(job)


def _read(path: Path) -> dict[str, str]:
    """Keys by file; lines that cannot be read count as absent, which only makes a video again."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            row: Any = json.loads(line)
            found[str(row["out"])] = str(row["key"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def path_of(job: Job) -> Path:
    """Where the video of a job lies; several PNG frames are in a folder of the file's name without its suffix."""
    assert job.out is not None  # every job of a run has a file
    folder = job.out.with_suffix("")
    return folder if job.out.suffix.lower() == ".png" and folder.is_dir() else job.out
