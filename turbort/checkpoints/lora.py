"""LoRAs: low-rank changes of a model's weights, added when the weights are read and before they are quantised.

    <linear>.lora_A.weight [r, in], <linear>.lora_B.weight [out, r]     PEFT and diffusers (also `lora_A.default.weight`)
    <linear>.lora_down.weight,      <linear>.lora_up.weight             kohya, LightX2V
    <linear>.alpha                  one value; the product is scaled by alpha / r, by 1 without it
    <name>.diff, <name>.diff_b      changes of a whole weight or bias (LightX2V)
Linears are named as in Wan's or diffusers' files, after `diffusion_model.`, `transformer.` and their kind, or as
`lora_unet_` with underscores for dots. `transformer_2.` is the low-noise expert of a model that has two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from turbort.checkpoints.checkpoint import Checkpoint
from turbort.checkpoints.dialect import Entry
from turbort.checkpoints.diffusers import dit_to_wan
from turbort.checkpoints.digest import digest_files
from turbort.checkpoints.locate import open_source
from turbort.checkpoints.source import Source, refuse, unreadable
from turbort.errors import CheckpointError, InputError
from turbort.quant.qtensor import QTensor

PREFIXES = ("base_model", "model", "diffusion_model", "transformer", "net", "module", "unet")
SECOND = "transformer_2."
FLAT = "lora_unet_"
_PART = re.compile(
    r"(?P<linear>.+?)\.(?:lora_(?P<side>A|B|down|up)(?:\.default)?\.weight|(?P<rest>alpha|diff|diff_b))", re.DOTALL
)
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}


@dataclass(frozen=True)
class Lora:
    """A file and how strongly it is applied; `expert` limits it to one transformer of a model that has several."""

    path: Path
    strength: float = 1.0
    expert: str | None = None


def parse_lora(text: str) -> Lora:
    """`FILE`, `FILE:0.8` or `high=FILE:0.8`; InputError for a strength that is no number."""
    expert, mark, rest = text.partition("=")
    if not mark or not expert.isidentifier():
        expert, rest = "", text
    path, _, strength = rest.rpartition(":")
    # A colon may belong to the name of the file (C:\\lora.safetensors): what follows must be a number to count.
    if not path or not re.fullmatch(r"[+-]?\d*\.?\d+", strength):
        path, strength = rest, "1"
    if not path:
        raise InputError(f"--lora {text!r} names no file", fix="write --lora FILE or --lora FILE:0.8")
    return Lora(Path(path), float(strength), expert or None)


def fuse(checkpoint: Checkpoint, loras: Sequence[Lora], *, second: bool = False) -> Checkpoint:
    """The same checkpoint with every LoRA added: W + strength * alpha / r * up @ down, in float32, in the weight's dtype.

    `second` takes the tensors under `transformer_2.` where a file has them. Nothing is read yet but headers. Raises
    CheckpointError for tensors that fit no weight, with their names.
    """
    for lora in loras:
        source = open_source(lora.path)
        entries = dict(checkpoint.entries)
        parts = _parts(source, entries, second=second)
        for name, part in parts.items():
            entries[name] = _fused(source, entries[name], part, lora.strength)
        note = f"{checkpoint.note}+lora({digest_files(source.files)}:{lora.strength:g})"
        checkpoint = replace(checkpoint, entries=entries, note=note)
    return checkpoint


def _parts(source: Source, entries: Mapping[str, Entry], *, second: bool) -> dict[str, dict[str, str]]:
    """Per weight of the model, what the file has for it: kind (down, up, alpha, diff) to stored name."""
    both = any(name.startswith(SECOND) for name in source.headers)
    flat = {name.removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight") for name in entries}
    parts: dict[str, dict[str, str]] = {}
    strangers = []
    for stored in source.headers:
        if both and stored.startswith(SECOND) != second:
            continue
        match = _PART.fullmatch(stored)
        target = _target(match, flat) if match else None
        if match is None or target is None or target not in entries:
            strangers.append(stored)
            continue
        kind = _SIDES[match["side"]] if match["side"] else match["rest"].removesuffix("_b")
        parts.setdefault(target, {})[kind] = stored
    refuse(source.path, "tensors that fit no weight of the model", strangers, fix="use a LoRA made for this model")
    if not parts:
        raise CheckpointError(f"{source.path} holds no LoRA", fix="name a file with lora_A/lora_B or lora_down/lora_up tensors")
    problems = [line for name, part in parts.items() if (line := _problem(source, name, entries[name], part))]
    refuse(source.path, "changes that do not fit their weights", problems, fix="use a LoRA made for this model")
    return parts


def _target(match: re.Match[str], flat: Mapping[str, str]) -> str:
    linear = match["linear"].removeprefix(SECOND)
    if linear.startswith(FLAT):
        linear = flat.get(linear.removeprefix(FLAT), linear)
    words = linear.split(".")
    while len(words) > 1 and words[0] in PREFIXES:
        words.pop(0)
    leaf = "bias" if match["rest"] == "diff_b" else "weight"
    inner = ".".join(words)
    # A modulation or a scale-shift table is changed whole, under its own name.
    named = dit_to_wan(f"{inner}.{leaf}")
    return dit_to_wan(inner) if inner.endswith(("modulation", "scale_shift_table")) else named


def _problem(source: Source, name: str, entry: Entry, part: Mapping[str, str]) -> str | None:
    sizes = {kind: source.headers[stored].shape for kind, stored in part.items()}
    odd = [
        stored for stored in part.values() if not source.headers[stored].dtype.is_floating_point and not stored.endswith("alpha")
    ]
    if odd:
        return f"{odd[0]} is {source.headers[odd[0]].dtype}"
    if "diff" in part and sizes["diff"] != entry.shape:
        return f"{part['diff']} is {list(sizes['diff'])}, {name} is {list(entry.shape)}"
    if ("down" in part) != ("up" in part) or ("alpha" in part and "up" not in part):
        return f"{', '.join(part.values())}: half of a pair"
    if "up" in part:
        down, up = sizes["down"], sizes["up"]
        inputs, columns = torch.Size(entry.shape[1:]).numel(), torch.Size(down[1:]).numel()
        if not down or up[:1] != entry.shape[:1] or torch.Size(up[1:]).numel() != down[0] or columns != inputs:
            return f"{part['down']} {list(down)} and {part['up']} {list(up)} do not make {list(entry.shape)} of {name}"
    return None


def _fused(source: Source, entry: Entry, part: Mapping[str, str], strength: float) -> Entry:
    def read() -> Tensor:
        value = entry.read()
        wide = value.dequantize(torch.float32) if isinstance(value, QTensor) else value.to(torch.float32)
        for change in _changes(source, part):
            wide = wide + strength * change.reshape(entry.shape)
        if not bool(wide.isfinite().all()):
            raise unreadable(source.path, f"the change of {', '.join(part.values())} is not finite")
        return wide.to(entry.dtype)

    return replace(entry, read=read, scheme=None, stored=f"{entry.stored}+lora")


def _changes(source: Source, part: Mapping[str, str]) -> list[Tensor]:
    found = []
    if "up" in part:
        down, up = (source.load(part[side]).to(torch.float32).flatten(1) for side in ("down", "up"))
        alpha = float(source.load(part["alpha"]).reshape(-1)[0]) if "alpha" in part else float(len(down))
        found.append(up @ down * (alpha / len(down)))
    if "diff" in part:
        found.append(source.load(part["diff"]).to(torch.float32))
    return found
