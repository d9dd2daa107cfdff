"""`turbort run`: from a prompt to a video file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, overhead, policies, ui
from turbort.cli.order import DEFAULT_OUT, Asked

if TYPE_CHECKING:
    from turbort.checkpoints.lora import Lora
    from turbort.cli.choose import Choice
    from turbort.guard.policy import Policy
    from turbort.job import Job, Result
    from turbort.models.spec import ModelSpec
    from turbort.plan import Plan


@ui.guarded
def run(
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="What the video shows.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What it does not show.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="One job a line: a prompt, or JSON with options of its own.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="File to write; the suffix says how: .mp4 .gif .png .npy")
    ] = DEFAULT_OUT,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME|DIR", help="Model name, or a folder with a model.yaml. [default: tiny]"),
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", metavar="FILE", help="Picture that the video continues.")] = None,
    lora: options.Loras = None,
    weights: options.Weights = None,
    profile: options.Profile = None,
    on: options.On = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Sampling steps.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, plan and device: the same frames.")] = 0,
    size: options.Size = None,
    frames: options.Frames = None,
    fps: Annotated[int | None, typer.Option("--fps", metavar="N", help="Frames per second of the file.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", metavar="G", help="Guidance scale; 1 is none.")] = None,
    sampler: options.Sampler = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE|DIR", help="Replay `turbort plan -o FILE` or `turbort compile -o DIR`.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Where the run's receipt goes; beside the video when absent.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Replay recorded promotions instead of monitoring.")
    ] = None,
    record_policy: Annotated[
        Path | None, typer.Option("--record-policy", metavar="FILE", help="Write what the outlier monitor promoted, and when.")
    ] = None,
    profile_ops: Annotated[
        bool, typer.Option("--profile-ops", help="Time every call site; writes a Chrome trace beside the report.")
    ] = False,
    memory_budget: options.Budget = None,
    prompt_cache: Annotated[
        bool, typer.Option("--prompt-cache/--no-prompt-cache", help="Keep the embeddings of prompts on disk.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make jobs of --prompts again that are finished.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    json: options.Json = False,
) -> None:
    """Make a video from a prompt, or many from a file. The paths of finished videos go to stdout."""
    asked = Asked(prompt, prompts, negative_prompt, seed, size, frames, fps, steps, guidance, out, report, image)
    extra = Extra(tuple(lora or ()), memory_budget, prompt_cache, policy, record_policy, profile_ops)
    work = prepare(asked, model, weights, profile, on, sampler, plan, extra)
    if not quiet:
        _warn(work)
    waiting = work.jobs if force or prompts is None else _unfinished(work, quiet=quiet)
    if dry_run:
        _show_plans(work, waiting, json=json)
        return
    from turbort.cli.outputs import path_of

    started = time.perf_counter()
    results, receipts = execute(work, waiting, quiet=quiet) if waiting else ([], [])
    if json:
        from turbort.cli.summary import summary

        ui.emit_json(summary(results, receipts, time.perf_counter() - started, asked.report_path))
    else:
        for job in work.jobs:
            ui.result(str(path_of(job)))
    if results and not quiet:
        from turbort.cli import summary as end

        end.show(end.summary(results, receipts, time.perf_counter() - started, asked.report_path))


@dataclass(frozen=True)
class Extra:
    """What changes weights and memory rather than the jobs."""

    loras: tuple[str, ...] = ()
    budget: str | None = None
    prompt_cache: bool = True
    policy: Path | None = None
    record_policy: Path | None = None
    profile_ops: bool = False


@dataclass(frozen=True)
class Work:
    """Everything a run needs, checked, with nothing heavy done yet."""

    asked: Asked
    spec: ModelSpec
    choice: Choice
    jobs: list[Job]
    weights: Path | None
    plan: Plan | None
    loras: tuple[Lora, ...] = ()
    budget: int | None = None
    prompt_cache: bool = True
    policy: Policy | None = None
    record_policy: Path | None = None
    profile_ops: bool = False

    @property
    def ledger_key(self) -> tuple[str, ...]:
        """What besides the job decides the frames."""
        return (
            self.spec.name,
            self.spec.sampler,
            self.choice.profile.digest,
            self.choice.target.backend,
            str(self.weights),
            *map(str, self.loras),
        )


def prepare(
    asked: Asked,
    model: str | None,
    weights: Path | None,
    profile: str | None,
    on: str | None,
    sampler: str | None,
    plan_file: Path | None,
    extra: Extra,
) -> Work:
    """Check every option: first what needs no device, then the device, then the model's files."""
    from turbort.cli.choose import choose, find_loras, find_model
    from turbort.cli.memory_table import parse_budget, within
    from turbort.cli.order import by_shape, check_apart, check_replay, jobs_of
    from turbort.cli.plan import with_sampler
    from turbort.models.files import as_trained, locate
    from turbort.plan import Plan
    from turbort.registry import Registry

    saved = Plan.load(plan_file) if plan_file else None
    if saved is not None:
        # A plan replays as it was made; what the command line says replaces single parts.
        model, profile, on = model or saved.header["model"], profile or saved.header["profile"], on or saved.header["backend"]
    spec = with_sampler(find_model(model or "tiny", Registry()), sampler)
    jobs = jobs_of(asked, spec)
    budget = parse_budget(extra.budget)
    choice = within(choose(profile, on), budget)
    if plan_file is not None and (plan_file / "manifest.json").is_file():
        _use_compiled(plan_file, choice)
    trained = as_trained(spec, locate(spec, weights or spec.root or Path.cwd()))
    if trained is not spec:
        spec = with_sampler(trained, sampler)
        jobs = jobs_of(asked, spec)
    if saved is not None:
        check_replay(saved, spec, choice.profile, by_shape(jobs, spec))
    loras = find_loras(extra.loras, spec)
    policy = policies.read(extra.policy, extra.record_policy, by_shape(jobs, spec))
    check_apart(asked, jobs, {"--record-policy": extra.record_policy}, {"--plan": plan_file, "--policy": extra.policy})
    more = extra.prompt_cache, policy, extra.record_policy, extra.profile_ops
    return Work(asked, spec, choice, jobs, weights, saved, loras, budget, *more)


def _use_compiled(folder: Path, choice: Choice) -> None:
    """Programs of `turbort compile`, when the run is on the backend they were compiled for."""
    from turbort import artifacts

    _, manifest = artifacts.load(folder)
    if manifest.backend == choice.target.backend:
        choice.registry.backend(manifest.backend).use_ahead(folder)


def _warn(work: Work) -> None:
    from turbort.request import grammar_warning

    outside = grammar_warning([job.prompt for job in work.jobs], work.spec)
    if outside:
        ui.warn(outside)
    if work.choice.target.rehearsal:
        ui.warn(
            f"rehearsal: the precisions of {work.choice.profile.name} with the kernels of {work.choice.target.backend} on "
            f"{work.choice.target.device.name}; the numerics are real, the timings mean nothing"
        )


def _unfinished(work: Work, *, quiet: bool) -> list[Job]:
    from turbort.cli.outputs import Ledger

    ledger = Ledger(work.asked.ledger_path, work.spec, work.ledger_key)
    left = [job for job in work.jobs if not ledger.finished(job)]
    if not quiet and len(left) < len(work.jobs):
        ui.say(f"{len(work.jobs) - len(left)} of {len(work.jobs)} videos are there already; --force makes them again")
    return left


def _show_plans(work: Work, jobs: Sequence[Job], *, json: bool) -> None:
    from turbort.cli.order import by_shape
    from turbort.cli.plan import make
    from turbort.cli.plan_table import show_plans

    groups = by_shape(jobs, work.spec)
    plans = [work.plan or make(work.choice, work.spec, group[0], jobs=len(group)) for group in groups]
    show_plans(plans, len(jobs), json=json)


def execute(work: Work, jobs: Sequence[Job], *, quiet: bool) -> tuple[list[Result], list[dict[str, Any]]]:
    """Make the videos, one session per shape; returns results and receipts, and writes the report."""
    import json

    from turbort.cli.order import by_shape
    from turbort.io import atomic_text

    results: list[Result] = []
    receipts: list[dict[str, Any]] = []
    for group in by_shape(jobs, work.spec):
        made, receipt = _session(work, group, quiet=quiet)
        results += made
        receipts.append(receipt)
    document = receipts[0] if len(receipts) == 1 else {"report": receipts[0]["report"], "runs": receipts}
    atomic_text(work.asked.report_path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return results, receipts


def _session(work: Work, jobs: list[Job], *, quiet: bool) -> tuple[list[Result], dict[str, Any]]:
    from turbort.cli.memory_table import forecast_of, memory_table
    from turbort.cli.outputs import Ledger
    from turbort.cli.plan import make
    from turbort.cli.plan_table import plan_table
    from turbort.cli.progress import Display
    from turbort.session import Session

    ledger = Ledger(work.asked.ledger_path, work.spec, work.ledger_key) if work.asked.prompts else None

    def written(number: int) -> None:
        if ledger is not None:
            ledger.add(jobs[number])

    plan = work.plan or make(work.choice, work.spec, jobs[0], jobs=len(jobs))
    memory = forecast_of(work.choice, work.spec, plan, work.budget)
    if not quiet:
        plan_table(plan, stderr=True)
    # A model that comes with turbort fits everywhere; for the others this is what people want to know before they wait.
    if not quiet and (work.spec.root is None or work.budget is not None):
        memory_table(memory, work.spec, stderr=True)
    with Display(quiet=quiet, jobs=len(jobs), on_written=written) as display:
        opened = Session.open(
            work.spec,
            work.choice.profile,
            registry=work.choice.registry,
            plan=plan,
            on=work.choice.target,
            jobs=jobs,
            root=work.weights,
            on_event=display,
            memory=memory,
            **_session_options(work),
        )
        with opened as session:
            made = session.generate(jobs, display)
            policies.write(session, work.record_policy, quiet=quiet)
            if work.profile_ops:
                overhead.write(session, work.asked.report_path, quiet=quiet)
            return made, session.report()


def _session_options(work: Work) -> dict[str, Any]:
    """What differs from the session's defaults."""
    from turbort.embed import PromptCache

    options: dict[str, Any] = {"cache": PromptCache.default()} if work.prompt_cache else {}
    options |= {"profile_ops": True} if work.profile_ops else {}
    options |= {"policy": work.policy} if work.policy else {}
    options |= {"loras": work.loras} if work.loras else {}
    return options | ({"memory_budget": work.budget} if work.budget is not None else {})
