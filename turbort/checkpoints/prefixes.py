"""Wrappers that training and user-interface code leave in the names of weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

LEADING = ("net", "model", "diffusion_model", "module", "_orig_mod")
ANYWHERE = ("_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module")


def strip_prefixes(names: Collection[str]) -> Mapping[str, str]:
    """Every name and what it is without wrappers.

    `net.`, `model.`, `diffusion_model.`, `module.` and `_orig_mod.` are dropped from the front, in any order and number;
    activation-checkpointing, FSDP and compile wrappers are dropped anywhere.
    """
    return {name: _strip(name) for name in names}


def _strip(name: str) -> str:
    parts = name.split(".")
    start = 0
    while start < len(parts) - 1 and parts[start] in LEADING:
        start += 1
    return ".".join(part for part in parts[start:] if part not in ANYWHERE) or name
