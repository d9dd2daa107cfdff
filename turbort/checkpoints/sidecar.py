"""JSON files beside the weights that say how these were quantised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

MAX_BYTES = 64 * 2**20


def sidecars(folder: Path, names: frozenset[str] | set[str]) -> Mapping[str, str]:
    """What the folder's JSON files say, as metadata: `quantization_config`, `hf_quant_config`, `quant_model_description`.

    The last is taken only where it describes one of `names`: a folder may hold several models.
    """
    found: dict[str, str] = {}
    config = _read(folder / "config.json")
    if isinstance(config.get("quantization_config"), dict):
        found["quantization_config"] = json.dumps(config["quantization_config"])
    modelopt = _read(folder / "hf_quant_config.json")
    if modelopt:
        found["hf_quant_config"] = json.dumps(modelopt)
    for path in sorted(folder.glob("quant_model_description*.json")):
        description = _read(path)
        if names & set(description):
            found["quant_model_description"] = json.dumps(description)
            break
    return found


def _read(path: Path) -> dict[str, object]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
