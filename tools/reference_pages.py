"""Reference pages made from the code itself, so that they cannot fall behind it. A hook of mkdocs (see mkdocs.yml)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def ops() -> str:
    """Every op with its signature and documentation."""
    from turbort.ops import OPS

    parts = [
        "# Ops",
        "An op is its reference function. Tokens are [B, L, D], attention tensors [B, L, H, head_dim], video [B, C, T, H, W].",
    ]
    for name, spec in OPS.items():
        parts += [f"## {name}", f"```python\n{name}{spec.signature}\n```", inspect.getdoc(spec.reference) or ""]
        samples = [sample.id for sample in spec.samples()]
        parts += [f"Precisions: {', '.join(spec.precisions)}. Samples: {len(samples)}."]
    return "\n\n".join(parts)


def precisions() -> str:
    """The table of precisions."""
    from turbort.precision import PRECISIONS

    head = [
        "name",
        "kind",
        "bits (weight / activation)",
        "granularity",
        "weights stored as",
        "producers may emit",
        "floor (nmse)",
    ]
    lines = ["# Precisions", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for p in PRECISIONS.values():
        bits = f"{p.weight_bits} / {p.activation_bits}"
        cells = (f"`{p.name}`", p.kind, bits, p.granularity, p.weight_scheme or "", p.emit or "", f"{p.max_nmse:g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def hooks() -> str:
    """The hooks a plugin may implement."""
    from turbort import hookspecs

    parts = ["# Hooks", inspect.getdoc(hookspecs) or "", f"Hook API version: {hookspecs.HOOK_API}."]
    for name, hook in vars(hookspecs).items():
        if name.startswith("turbort_"):
            parts += [f"## {name}", f"```python\n{name}{inspect.signature(hook)}\n```", inspect.getdoc(hook) or ""]
    return "\n\n".join(parts)


def profile_keys() -> str:
    """Every key of a profile, from the pydantic models."""
    from pydantic import BaseModel

    from turbort.profile import Profile

    def rows(model: type[BaseModel], prefix: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            key = f"{prefix}{field.alias or name}"
            inner = field.annotation
            if inspect.isclass(inner) and issubclass(inner, BaseModel):
                found += [f"| **`{key}`** | {(inspect.getdoc(inner) or '').splitlines()[0]} | |", *rows(inner, f"{key}.")]
            else:
                default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
                found.append(f"| `{key}` | {(field.description or '').replace('|', chr(92) + '|')} | {default} |")
        return found

    return "\n".join(["# Profile keys", "", "| key | meaning | default |", "|---|---|---|", *rows(Profile, "")])


def cli() -> str:
    """The help of every command."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from turbort.cli import app

    def pages(command: Any, words: list[str]) -> list[str]:
        text = (
            CliRunner()
            .invoke(app, [*words[1:], "--help"], env={"COLUMNS": "110"})
            .output.replace("Usage: root", "Usage: turbort")
        )
        found = [f"## {' '.join(words)}", f"```text\n{text.strip()}\n```"]
        for name, child in getattr(command, "commands", {}).items():
            found += pages(child, [*words, name])
        return found

    return "\n\n".join(["# Command line", *pages(get_command(app), ["turbort"])])


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/ops.md": ops,
    "reference/precisions.md": precisions,
    "reference/hooks.md": hooks,
    "reference/profile-keys.md": profile_keys,
    "reference/cli.md": cli,
}


def on_config(config: Any) -> Any:
    """mkdocs: list every decision record in the navigation."""
    records = sorted(Path(config.docs_dir).glob("adr/*.md"))
    for section in config.nav:
        if isinstance(section, dict) and "Decisions" in section:
            section["Decisions"] = [f"adr/{record.name}" for record in records]
    return config


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: add the pages before the site is built."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files
