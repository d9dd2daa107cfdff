"""`turbort calibrate`: what every call site sees, and what each precision would cost there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui
from turbort.errors import InputError

if TYPE_CHECKING:
    from turbort.calibration import Calibration
    from turbort.job import Job
    from turbort.models.spec import ModelSpec

COLUMNS = ("role", "sites", "range", "outliers", "near zero", "precision", "site nmse", "felt")
SIGNAL_COLUMNS = ("signal", "step", "precision", "10 %", "50 %", "90 %", "rank correlation", "videos", "of")


@ui.guarded
def calibrate(
    model: options.Model = "tiny",
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts to sample, one a line, or JSON with a seed.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", metavar="DIR", help="Folder with the files of the model.")] = None,
    profile: options.Profile = None,
    on: options.On = None,
    size: options.Size = None,
    frames: options.Frames = None,
    sampler: options.Sampler = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Sampling steps.")] = None,
    link: Annotated[
        str, typer.Option("--link", metavar="NAMES", help="Precisions of whole videos that tie errors to pixels; `none` skips.")
    ] = "w8a8,w4a8",
    every_link: Annotated[
        bool, typer.Option("--every-link", help="Make those videos of every prompt: what strength levels need to know.")
    ] = False,
    moments: Annotated[
        Path | None, typer.Option("--moments", metavar="FILE", help="Keep E[x x^T] of linears, too, for `turbort prune`.")
    ] = None,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", metavar="FILE", help="Add this calibration; may be given several times.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where it goes.")] = Path("calibration.json"),
    json: options.Json = False,
) -> None:
    """Sample videos unquantised, watch every call site, and write calibration.json for `turbort plan --calibration`."""
    from turbort.calibration import Calibration
    from turbort.calibration import merge as joined
    from turbort.io import atomic_text, resolve_target

    if prompts is None and not merge:
        raise InputError("there is nothing to calibrate with", fix="add --prompts FILE, or --merge FILE --merge FILE")
    for path in (out, *([moments] if moments else [])):
        resolve_target(path)
    parts = [Calibration.load(path) for path in merge or ()]
    if prompts is not None:
        precisions = () if link == "none" else tuple(name.strip() for name in link.split(","))
        shaped = _shape(size, frames, steps)
        parts.append(_made(model, prompts, weights, profile, on, shaped, sampler, precisions, moments, every_link=every_link))
    made = joined(parts)
    atomic_text(out, made.dumps())
    if json:
        tables = {"roles": rows(made), "signals": signals(made)}
        ui.emit_json({"out": str(out), "digest": made.digest, **made.header, "runs": len(made.runs), **tables})
        return
    ui.table(rows(made), COLUMNS, title=f"calibration {made.digest}: {made.header['model']}, {len(made.runs)} runs")
    ui.table(signals(made), SIGNAL_COLUMNS, title="how the videos looked at each step, and how that goes with their errors")
    for row in made.links:
        ui.say(f"all linears at {row.precision}: predicted error {row.predicted:.3g}, video PSNR {row.psnr:.2f} dB")
    ui.result(str(out))


def _shape(size: str | None, frames: int | None, steps: int | None) -> dict[str, Any]:
    return {"size": size, "frames": frames, "steps": steps}


def _made(
    model: str,
    prompts: Path,
    weights: Path | None,
    profile: str | None,
    on: str | None,
    shape: dict[str, Any],
    sampler: str | None,
    links: tuple[str, ...],
    moments: Path | None,
    *,
    every_link: bool,
) -> Calibration:
    from turbort.calibrate.run import Subject
    from turbort.calibrate.run import calibrate as run
    from turbort.cli.choose import choose, find_model
    from turbort.cli.plan import with_sampler
    from turbort.cli.progress import Display
    from turbort.embed import PromptCache
    from turbort.errors import unknown
    from turbort.models.files import as_trained, locate
    from turbort.precision import LINEAR
    from turbort.request import read_prompts

    for name in links:
        if name not in LINEAR:
            raise unknown("linear precision", name, LINEAR)
    choice = choose(profile, on)
    spec = with_sampler(find_model(model, choice.registry), sampler)
    root = weights or spec.root or Path.cwd()
    spec = with_sampler(as_trained(spec, locate(spec, root)), sampler)
    jobs = read_prompts(prompts, _base(spec, shape), spec)
    subject = Subject(spec, choice.profile, choice.registry, choice.target, root, PromptCache.default())
    with Display(jobs=len(jobs)) as display:
        return run(subject, jobs, links=links, moments=moments, every_link=every_link, on_event=display)


def _base(spec: ModelSpec, shape: dict[str, Any]) -> Job:
    from turbort.job import Job
    from turbort.request import parse_size

    width, height = parse_size(shape["size"], spec) if shape["size"] else (None, None)
    return Job("calibration", width=width, height=height, frames=shape["frames"], steps=shape["steps"])


def rows(made: Calibration) -> list[dict[str, Any]]:
    """One line per role and precision: the worst site of the role, and what all its sites do together."""
    groups: dict[str, list[Any]] = {}
    for site in made.sites.values():
        if site.precisions:
            groups.setdefault(site.role, []).append(site)
    found = []
    for role, sites in groups.items():
        seen = [site.seen for site in sites]
        facts = {
            "role": role,
            "sites": len(sites),
            "range": f"{max(row.largest for row in seen):.3g}",
            "outliers": f"{max(row.outlier_share for row in seen):.2%}",
            "near zero": f"{max(row.sparsity for row in seen):.0%}",
        }
        for number, precision in enumerate(sorted({name for site in sites for name in site.precisions})):
            errors = {
                "precision": precision,
                "site nmse": f"{max(site.nmse(precision) for site in sites):.2g}",
                "felt": f"{sum(site.felt(precision) for site in sites):.2g}",
            }
            found.append({**(facts if number == 0 else {}), **errors})
    return found


def signals(made: Calibration) -> list[dict[str, Any]]:
    """Per signal and step its quantiles over the videos, and its rank correlation with the videos' errors at each precision."""
    from turbort.looks import ERROR, SIGNALS, quantile, trend

    known = [set(video.mse) or {name for look in video.looks for name in look.felt} for video in made.videos]
    names = sorted(set.intersection(*known)) if known else []
    steps = min((len(video.looks) for video in made.videos), default=0)
    found = []
    for signal, step in (*((name, step) for name in SIGNALS for step in range(1, steps + 1)), (ERROR, 1)):
        for name in names:
            values = sorted(v for v in (video.value(signal, step, name) for video in made.videos) if v is not None)
            row = trend(made.videos, signal, step, name)
            if row is not None:
                facts: dict[str, Any] = {"signal": signal, "step": step, "precision": name}
                facts |= {word: f"{quantile(values, share):.4g}" for word, share in (("10 %", 0.1), ("50 %", 0.5), ("90 %", 0.9))}
                found.append({**facts, "rank correlation": f"{row.correlation:+.2f}", "videos": row.clips, "of": row.label})
    return found
