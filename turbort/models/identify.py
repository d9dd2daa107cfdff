"""Which known model a file of weights is for, and what is wrong with it if it fits none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from turbort.checkpoints import Checkpoint
from turbort.checkpoints.roles import role_of
from turbort.models.spec import MODELS, ModelSpec
from turbort.models.umt5 import Umt5
from turbort.models.vae import build_vae
from turbort.models.wan_dit import WanDit

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Match:
    """How a file compares with one part of one model. `problems` is 0 for a perfect fit."""

    models: tuple[str, ...]
    part: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def problems(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong)


def part_of(names: Mapping[str, object]) -> str:
    """`dit`, `vae`, `text`, `image` or `unknown`: what most of the names belong to."""
    counts: dict[str, int] = {}
    for name in names:
        role = role_of(name)
        part = (
            role.partition(".")[0]
            if role.partition(".")[0] in ("text", "vae", "image")
            else "unknown"
            if role == "other"
            else "dit"
        )
        counts[part] = counts.get(part, 0) + 1
    return max(counts, key=lambda part: counts[part]) if counts else "unknown"


def identify(checkpoint: Checkpoint, models: Mapping[str, ModelSpec] = MODELS) -> Match | None:
    """The best match: fewest differences in names and shapes. None for files that are no part of any known model."""
    part = part_of(checkpoint.entries)
    best: Match | None = None
    for name, expected in _candidates(part, checkpoint, models):
        match = _compare(name, part, checkpoint, expected)
        if best is None or match.problems < best.problems:
            best = match
        elif match.problems == best.problems and name not in best.models:
            best = Match((*best.models, name), part, best.missing, best.unexpected, best.wrong)
    return best


def _candidates(part: str, checkpoint: Checkpoint, models: Mapping[str, ModelSpec]) -> Iterator[tuple[str, Shapes]]:
    if part == "dit":
        patch = checkpoint.entries.get("patch_embedding.weight")
        width = patch.shape[0] if patch else None
        specs = [spec for spec in models.values() if spec.dit.dim == width] or list(models.values())
        for spec in specs:
            for variant in (spec, spec.base()) if spec.base() is not spec else (spec,):
                with torch.device("meta"):
                    yield spec.name, _shapes(WanDit(variant.dit))
        return
    for spec in models.values():
        with torch.device("meta"):
            if part == "vae":
                yield spec.name, _shapes(build_vae(spec.vae))
            elif part == "text":
                yield spec.name, _shapes(Umt5(spec.text))


def _shapes(model: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _compare(name: str, part: str, checkpoint: Checkpoint, expected: Shapes) -> Match:
    entries = checkpoint.entries
    return Match(
        (name,),
        part,
        tuple(key for key in expected if key not in entries),
        tuple(key for key, entry in entries.items() if key not in expected and not entry.alias),
        tuple(
            f"{key} is {list(entries[key].shape)}, not {list(shape)}"
            for key, shape in expected.items()
            if key in entries and entries[key].shape != shape
        ),
    )
