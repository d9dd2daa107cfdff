"""`turbort profiles`: list, show, validate, explain, schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui

if TYPE_CHECKING:
    from turbort.profile import Entry, Profile

app = typer.Typer(help="Hardware profiles: list, show, validate, explain.", no_args_is_help=True, rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="PROFILE", help="A name, a path, or a file name such as ascend910.yaml.")]
COLUMNS = ("profile", "backend", "arch", "memory", "linear", "attention", "compute", "batch", "strategy", "from", "problem")


@app.command("list")
@ui.guarded
def list_(json: options.Json = False) -> None:
    """List every profile that can be named, and where it comes from."""
    from turbort.profile import list_profiles
    from turbort.registry import Registry

    registry = Registry()
    rows = [_row(entry) for entry in list_profiles(registry.profile_paths, precisions=registry.precisions)]
    if json:
        ui.emit_json(rows)
    else:
        ui.table(rows, COLUMNS, styles=lambda row: "bad" if row.get("problem") else None)


@app.command()
@ui.guarded
def show(name: Name, json: options.Json = False) -> None:
    """Print a profile as it is understood, with every default filled in."""
    profile = _load(name)
    if json:
        ui.emit_json(profile.document)
    else:
        ui.say(f"from {profile.origin}", "quiet")
        ui.result(profile.dumps().rstrip("\n"))


@app.command()
@ui.guarded
def validate(
    names: Annotated[list[str], typer.Argument(metavar="PROFILE...", help="Names or files.")], json: options.Json = False
) -> None:
    """Check profiles; exit code 2 when one is wrong."""
    from turbort.errors import InputError

    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            profile = _load(name)
            rows.append({"profile": name, "ok": True, "digest": profile.digest, "file": profile.origin})
        except InputError as error:
            rows.append({"profile": name, "ok": False, "problem": error.message, "more": list(error.tried), "fix": error.fix})
            if not json:
                ui.show_error(error)
    if json:
        ui.emit_json(rows)
    else:
        for row in rows:
            ui.result(f"{row['profile']}: {'ok' if row['ok'] else 'wrong'}")
    if not all(row["ok"] for row in rows):
        ui.leave(InputError.exit_code)


@app.command()
@ui.guarded
def explain(
    name: Name,
    model: options.Model = "tiny",
    size: options.Size = None,
    frames: options.Frames = None,
    sampler: options.Sampler = None,
    sites: Annotated[bool, typer.Option("--sites", help="One line per call site.")] = False,
    json: options.Json = False,
) -> None:
    """Show what a profile means for a model, planned on the null backend: needs neither the device nor weights."""
    from turbort.cli.choose import Choice, find_model, read_profile
    from turbort.cli.plan import make, shape, with_sampler
    from turbort.cli.plan_table import grouped, plan_table
    from turbort.planner import find_target
    from turbort.registry import Registry

    registry = Registry()
    profile = read_profile(name, registry)
    spec = with_sampler(find_model(model, registry), sampler)
    choice = Choice(registry, profile, find_target(profile, registry, "null"))
    plan = make(choice, spec, shape(spec, size, frames))
    if json:
        groups = grouped(plan)
        ui.emit_json({"profile": profile.document, "plan": {"digest": plan.digest, **plan.header}, "groups": groups})
        return
    ui.table(_sentences(profile), ("about", "says"), title=f"profile {profile.name}: {profile.description}")
    plan_table(plan, sites=sites)


@app.command()
@ui.guarded
def schema() -> None:
    """Print the JSON schema of profiles, for editors."""
    from turbort.profile_schema import schema_text

    ui.result(schema_text().rstrip("\n"))


def _load(name: str) -> Profile:
    from turbort.cli.choose import read_profile
    from turbort.registry import Registry

    return read_profile(name, Registry())


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"profile": entry.name, "from": entry.origin, "file": str(entry.path), "problem": entry.problem}
    if entry.profile is None:
        return row
    profile = entry.profile
    return {
        **row,
        "backend": profile.target.backend,
        "arch": list(profile.target.arch),
        "memory": str(profile.target.memory or "any"),
        "linear": _linear(profile),
        "attention": f"{profile.attention.kind} {profile.precision.attention}",
        "compute": profile.precision.compute,
        "batch": _batch(profile),
        "strategy": profile.memory.strategy,
        "digest": profile.digest,
        "description": profile.description,
    }


def _linear(profile: Profile) -> str:
    linear = profile.precision.linear
    return linear.max if linear.max == linear.min else f"{linear.max} to {linear.min}"


def _batch(profile: Profile) -> str:
    batch = profile.batch
    return str(batch.most) if batch.mode == "fixed" else f"{batch.least}-{batch.most}"


def _sentences(profile: Profile) -> list[dict[str, str]]:
    """The profile in words, for readers who do not know the format."""
    precision, attention, memory, monitor = profile.precision, profile.attention, profile.memory, profile.monitor
    target = f"{profile.target.backend}, {' or '.join(profile.target.arch)}"
    blocks = f"blocks of {attention.block[0]} x {attention.block[1]} tokens"
    sparse = f"sparse-linear, the best {attention.topk:g} of the key blocks, {blocks}"
    offload = memory.offload if isinstance(memory.offload, str) else ", ".join(memory.offload)
    tier = f", quantised weights below {memory_text(memory.tier_boundary)}" if memory.tier_boundary else ""
    capture, overhead = profile.graph.capture, f"{monitor.quant_overhead:.0%}"
    says = {
        "target": f"{target}, memory {profile.target.memory or 'any'}",
        "linear": _linear(profile),
        "attention": f"{precision.attention}; {sparse if attention.kind == 'sla' else 'dense'}",
        "other ops": f"{precision.compute} (input and output {precision.io}, VAE {precision.vae}, text encoder {precision.text})",
        "batch": f"{profile.batch.mode}, {_batch(profile)} samples in one model call",
        "memory": f"{memory.strategy}{tier}, offload {offload}, activation cache {memory.activation_cache}",
        "graph capture": "auto" if isinstance(capture, str) else "always" if capture else "never",
        "monitor": f"{monitor.on_outlier} above {monitor.outlier_share:.0%} outliers; quantising up to {overhead} of a step",
        "adaptive": _adaptive(profile),
        "quality": f"at least {profile.quality.psnr:g} dB PSNR and {profile.quality.ssim:g} SSIM against the unquantised run",
        "fallback": profile.fallback,
    }
    return [{"about": about, "says": text} for about, text in says.items()]


def _adaptive(profile: Profile) -> str:
    """Strength levels in words."""
    wish = profile.adaptive
    if not wish.enabled:
        return "off: every step runs at the planned precisions"
    levels = " / ".join(f"{psnr:g} dB" for psnr in wish.levels) or "the planned precisions / every second kernel"
    when = "once per clip, by the first step" if wish.per == "clip" else "per step, by the last but one"
    signal = "the calibrated signal" if wish.signal == "auto" else wish.signal
    cuts = ", ".join(f"{value:g}" for value in wish.thresholds) or ", ".join(f"{share:.0%}" for share in wish.quantiles)
    by = f"thresholds {cuts}" if wish.thresholds else f"the easiest {cuts} of the calibrated videos below each further level"
    return f"{levels}; chosen {when}, from {signal}: {by}; begins {wish.begin}"


def memory_text(count: int) -> str:
    """Bytes as people read them."""
    from turbort.units import format_bytes

    return format_bytes(count)
