"""Where the files of a model lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from turbort.checkpoints import open_checkpoint
from turbort.errors import CheckpointError
from turbort.models.spec import ModelSpec


def locate(spec: ModelSpec, root: Path, *, quantised: bool = False) -> Mapping[str, Path]:
    """The file or folder of each role (`dit`, `vae`, `text`, `tokenizer`, ...), looked for under `root`.

    `spec.files` lists patterns per role, best first. Where one pattern finds several files, `quantised` takes the one that
    says so (`-quant`, `int8`, `fp8`), otherwise one that does not is taken; a shard stands for the index beside it.
    Raises CheckpointError naming every role that has no file, what was looked for, and what to do.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    for role, patterns in spec.files.items():
        path = next((_best(found_by, quantised) for pattern in patterns if (found_by := sorted(root.glob(pattern)))), None)
        if path is None:
            missing.append(f"{role}: {' or '.join(patterns)}")
        else:
            found[role] = path
    if missing:
        raise CheckpointError(
            f"the files of {spec.name} are not in {root}",
            tried=missing,
            fix="put them there, or name their folder with `--weights DIR`" + _where(spec),
        )
    return found


_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
QUANTISED = ("quant", "int8", "fp8", "w8a8", "q8_0")


def _best(paths: list[Path], quantised: bool) -> Path:
    """The first whose name agrees with what is wanted, else the first."""
    fitting = [path for path in paths if any(word in path.name.lower() for word in QUANTISED) is quantised]
    found = (fitting or paths)[0]
    index = found.with_name(_SHARD.sub("", found.name) + ".index.json")
    return index if _SHARD.search(found.name) and index.is_file() else found


def _where(spec: ModelSpec) -> str:
    return "".join(f"; {kind}: {repo}" for kind, repo in spec.repos.items())


def as_trained(spec: ModelSpec, files: Mapping[str, Path]) -> ModelSpec:
    """The spec that the transformer's file was trained for, read from its header alone.

    One name stands for a model and its few-step, sparse-attention distillation. Weights without the projection of SLA's
    linear branch are those of the model before distillation: dense attention, many steps, guidance.
    """
    first = files[spec.experts[0] if spec.experts else "dit"]
    if spec.dit.sla is None or any(".proj_l." in name for name in open_checkpoint(first).logical()):
        return spec
    return spec.base()
