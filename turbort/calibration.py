"""Calibration documents: what a model's call sites saw and what each precision would cost there. No torch here.

Everything that is stored per site and step is a sum, a count, a least or a largest value, so that files of the same checkpoint
merge into the file that one longer run would have written (`merge`), whatever the order.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbort.errors import InputError
from turbort.looks import Video
from turbort.site_record import SiteRecord, joined, site_in, site_out

CALIBRATION_SCHEMA = 1


@dataclass(frozen=True)
class Link:
    """A whole video at one precision: the error that was predicted for the model's output, and the video's pixel error.

    `mse` is the mean squared error of pixels in [0, 1] against the unquantised video of the same noise; `clips` how many.
    """

    precision: str
    predicted: float
    mse: float
    clips: int = 1

    @property
    def psnr(self) -> float:
        return -10.0 * math.log10(max(self.mse, 1e-10))


@dataclass(frozen=True)
class Calibration:
    """What calibration found out about one checkpoint.

    `header` binds it: model, checkpoint digests by expert, attention, compute dtype, size, frames, steps. `runs` are the prompts
    and seeds that went in; `links` tie predicted errors to pixels; `videos` say how each run looked at its steps.
    """

    header: Mapping[str, Any]
    sites: Mapping[str, SiteRecord]
    runs: tuple[tuple[str, int], ...] = ()
    links: tuple[Link, ...] = ()
    videos: tuple[Video, ...] = ()

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the document."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()[:12]

    def dumps(self) -> str:
        document = {
            "calibration": CALIBRATION_SCHEMA,
            **self.header,
            "runs": [list(run) for run in self.runs],
            "links": [asdict(link) for link in self.links],
            "videos": [video.as_data() for video in self.videos],
            "sites": {path: site_out(site) for path, site in self.sites.items()},
        }
        return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"

    @staticmethod
    def loads(text: str, source: str = "calibration") -> Calibration:
        """Read a document; InputError for anything else."""
        fix = "write one with `turbort calibrate`"
        try:
            document = json.loads(text)
        except ValueError as error:
            raise InputError(f"{source} is not JSON: {error}", fix=fix) from None
        if not isinstance(document, dict) or document.get("calibration") != CALIBRATION_SCHEMA:
            raise InputError(f"{source} is not a calibration of schema {CALIBRATION_SCHEMA}", fix=fix)
        try:
            sites = {str(path): site_in(row) for path, row in document["sites"].items()}
            links = tuple(Link(**row) for row in document["links"])
            runs = tuple((str(prompt), int(seed)) for prompt, seed in document["runs"])
            videos = tuple(Video.of(row) for row in document.get("videos", ()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{source} has a damaged part: {error}", fix=fix) from None
        header = {key: value for key, value in document.items() if key not in ("calibration", "runs", "links", "videos", "sites")}
        return Calibration(header, sites, runs, links, videos)

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read a file written by `turbort calibrate`."""
        try:
            return Calibration.loads(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read calibration {path}: {error}", fix="write one with `turbort calibrate`") from None

    def error_for(self, psnr: float) -> float:
        """The error of the model's output at which a whole video is predicted to reach `psnr` dB.

        Between the links on straight lines of log(mse) over log(error), beyond them in proportion. Without links an error e
        is taken to leave pixels of variance 1/12 with a mean squared error of e/12.
        """
        wanted = math.log(10.0 ** (-psnr / 10.0))
        return math.exp(_on_line([(mse, error) for error, mse in self._points()], wanted))

    def psnr_at(self, error: float) -> float:
        """The inverse of `error_for`: dB of a whole video whose model output has this error; 100 at most."""
        if error <= 0.0:
            return 100.0
        return min(100.0, -10.0 * _on_line(self._points(), math.log(error)) / math.log(10.0))

    def _points(self) -> list[tuple[float, float]]:
        """(log error, log mse) of the links, both rising."""
        rows = sorted((link.predicted, link.mse) for link in self.links if link.predicted > 0 and link.mse > 0)
        points: list[tuple[float, float]] = []
        for error, mse in rows:
            if not points or (math.log(error) > points[-1][0] and math.log(mse) > points[-1][1]):
                points.append((math.log(error), math.log(mse)))
        return points or [(0.0, math.log(1.0 / 12.0))]

    def check(self, model: str, checkpoints: Mapping[str, str] | None = None) -> None:
        """InputError unless this was recorded for `model`, and for these checkpoint digests where they are known."""
        theirs = self.header.get("checkpoints", {})
        lines = [] if self.header.get("model") == model else [f"model: {self.header.get('model')} there, {model} here"]
        lines += [
            f"{role}: weights {theirs.get(role)} there, {digest} here"
            for role, digest in (checkpoints or {}).items()
            if theirs.get(role) != digest
        ]
        if lines:
            raise InputError("the calibration is for other weights", tried=lines, fix="run `turbort calibrate` for these")


def _on_line(points: Sequence[tuple[float, float]], x: float) -> float:
    """y at x on straight lines through `points`, which rise in both; beyond them with slope 1."""
    if x <= points[0][0]:
        return points[0][1] + x - points[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1] + x - points[-1][0]


def merge(parts: Sequence[Calibration]) -> Calibration:
    """One calibration from several of the same checkpoint and setting; InputError naming what differs, or a run twice."""
    if not parts:
        raise InputError("there is no calibration to merge", fix="name at least one file")
    first = parts[0]
    for other in parts[1:]:
        pairs = {key: (first.header.get(key), other.header.get(key)) for key in sorted({*first.header, *other.header})}
        differing = [f"{key}: {mine} and {theirs}" for key, (mine, theirs) in pairs.items() if mine != theirs]
        if differing:
            raise InputError("these calibrations do not belong together", tried=differing, fix="merge files of one setting only")
    runs = [run for part in parts for run in part.runs]
    twice = sorted({f"{prompt!r}, seed {seed}" for prompt, seed in runs if runs.count((prompt, seed)) > 1})
    if twice:
        raise InputError("the same run is in more than one file", tried=twice, fix="leave one of the files out")
    sites: dict[str, SiteRecord] = {}
    for part in parts:
        sites = joined(sites, part.sites)
    videos = tuple(video for part in parts for video in part.videos)
    return Calibration(first.header, sites, tuple(runs), tuple(_links(parts)), videos)


def _links(parts: Iterable[Calibration]) -> list[Link]:
    """Links of one precision averaged over their clips."""
    found: dict[str, Link] = {}
    for link in (link for part in parts for link in part.links):
        old = found.get(link.precision)
        if old is None:
            found[link.precision] = link
            continue
        clips = old.clips + link.clips
        mean = [(a * old.clips + b * link.clips) / clips for a, b in ((old.predicted, link.predicted), (old.mse, link.mse))]
        found[link.precision] = Link(link.precision, mean[0], mean[1], clips)
    return list(found.values())
