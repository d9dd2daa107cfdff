"""Model specs from a `model.yaml`: the embedded tiny model, and any other folder that has one. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.errors import CheckpointError, nearest
from turbort.models.config import Defaults, DitConfig, ModelSpec, Preset, Sla, TextConfig, VaeConfig

if TYPE_CHECKING:
    from pydantic import ValidationError

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "tiny"

NAME = "tiny"


@cache
def tiny_spec() -> ModelSpec:
    """The embedded model, as its `model.yaml` says."""
    return read_spec(ASSETS / "model.yaml")


def read_spec(path: Path) -> ModelSpec:
    """Parse a `model.yaml`. Fields are those of `ModelSpec`; `files` and `prompt_grammar` are relative to its folder.

    Raises CheckpointError for a file that is not YAML, unknown or missing keys, or values of the wrong type, and names each.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", fix="compare it with turbort/assets/tiny/model.yaml") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no mapping of keys to values", fix="compare it with turbort/assets/tiny/model.yaml")
    problems = _unknown_keys(data)
    if problems:
        raise CheckpointError(f"{path} is not a model description", tried=problems, fix="correct the keys above")
    try:
        spec: ModelSpec = TypeAdapter(ModelSpec).validate_python(_located(data, path.parent))
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is not a model description", tried=_problems(error), fix="correct the keys above"
        ) from error
    _check_sampler(spec, path)
    return spec


def _located(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    located = {**data, "root": folder}
    if data.get("prompt_grammar"):
        located["prompt_grammar"] = folder / str(data["prompt_grammar"])
    return located


_NESTED: Mapping[str, type] = {"dit": DitConfig, "vae": VaeConfig, "text": TextConfig, "defaults": Defaults}


def _unknown_keys(data: Mapping[str, Any]) -> list[str]:
    found = _unknown_in(data, ModelSpec, "")
    for key, kind in _NESTED.items():
        if isinstance(data.get(key), dict):
            found += _unknown_in(data[key], kind, f"{key}.")
    dit = data.get("dit")
    if isinstance(dit, dict) and isinstance(dit.get("sla"), dict):
        found += _unknown_in(dit["sla"], Sla, "dit.sla.")
    presets = data.get("presets")
    for name, preset in presets.items() if isinstance(presets, dict) else ():
        if isinstance(preset, dict):
            found += _unknown_in(preset, Preset, f"presets.{name}.")
    return found


def _unknown_in(data: Mapping[str, Any], kind: type, prefix: str) -> list[str]:
    allowed = [name for name in kind.__dataclass_fields__ if name != "root"]  # type: ignore[attr-defined]
    lines = []
    for key in data:
        if key not in allowed:
            close = nearest(str(key), allowed, 1)
            lines.append(f"unknown key {prefix}{key}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return lines


def _problems(error: ValidationError) -> list[str]:
    return [f"{'.'.join(str(part) for part in row['loc']) or 'file'}: {row['msg']}" for row in error.errors()]


def _check_sampler(spec: ModelSpec, path: Path) -> None:
    if spec.sampler not in spec.presets:
        raise CheckpointError(
            f"{path} names sampler {spec.sampler!r} but has no preset for it", tried=[f"presets: {', '.join(spec.presets)}"]
        )
