"""`turbort download MODEL`: a model's files from the hub, into a folder that `--weights` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui
from turbort.errors import InputError, UnavailableError, unknown

if TYPE_CHECKING:
    from turbort.models.spec import ModelSpec

TRANSFORMERS = ("dit", "high", "low")


@ui.guarded
def download(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name, as `turbort models` lists it.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder to fill. [default: ./MODEL]")] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="NAME", help="Transformer: turbo (distilled) where there is one, or base."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be downloaded.")] = False,
    json: options.Json = False,
) -> None:
    """Download a model's files with huggingface_hub. Files that are there and complete are not downloaded again."""
    from turbort.cli.choose import find_model
    from turbort.registry import Registry

    spec = find_model(model, Registry())
    folder = to or Path(spec.name)
    parts = wanted(spec, kind)
    if json:
        ui.emit_json([{"repo": repo, "patterns": list(patterns), "to": str(folder)} for repo, patterns in parts])
    elif dry_run:
        for repo, patterns in parts:
            ui.result(f"{repo}: {', '.join(patterns)}")
    if not dry_run:
        fetch = snapshot()
        for repo, patterns in parts:
            ui.say(f"{repo} into {folder}")
            _fetch(fetch, repo, patterns, folder)
        ui.result(str(folder))


def wanted(spec: ModelSpec, kind: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """Repositories and file patterns: the transformer of `kind`, everything else from the base repository."""
    if not spec.repos:
        raise InputError(f"{spec.name} is on no hub", fix="it comes with turbort" if spec.root else "name a Wan model")
    chosen = kind or ("turbo" if "turbo" in spec.repos else "base")
    if chosen not in spec.repos:
        raise unknown(f"kind of {spec.name}", chosen, spec.repos)
    weights = tuple(pattern for role in TRANSFORMERS for pattern in spec.files.get(role, ()))
    # A role is one folder level down at most; a bare `*.pth` of the base repository would take text encoder and VAE twice.
    own = tuple(p for p in weights if (p.startswith(("Turbo", "*")) == (chosen == "turbo")))
    shared = tuple(pattern for role, patterns in spec.files.items() if role not in TRANSFORMERS for pattern in patterns)
    index = ("*.safetensors.index.json", "*/*.safetensors.index.json", "config.json")
    if chosen == "base":
        return [(spec.repos["base"], (*own, *index, *shared))]
    return [(spec.repos[chosen], own), *([(spec.repos["base"], shared)] if "base" in spec.repos else [])]


def snapshot() -> Callable[..., Any]:
    """huggingface_hub's `snapshot_download`; UnavailableError without the package."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UnavailableError(f"huggingface_hub is not installed ({error})", fix="pip install huggingface_hub") from None
    found: Callable[..., Any] = snapshot_download
    return found


def _fetch(fetch: Callable[..., Any], repo: str, patterns: Sequence[str], folder: Path) -> None:
    try:
        fetch(repo_id=repo, allow_patterns=list(patterns), local_dir=str(folder))
    except KeyboardInterrupt:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(
            f"cannot download from {repo}: {reason[:300]}",
            tried=[f"wanted: {', '.join(patterns)}"],
            fix=f"check the network, or copy these files into {folder} by other means",
        ) from error
