"""Configurations measured on this machine, which replace rows of `turbort_cuda.configs`.

The file is JSON: {"sm_90": {"linear8": {"wide": {...}, "1536x8960": {...}}}}. A key with N x K wins over a shape class.
`python -m benchmarks.cuda tune --save` writes it; nothing is ever measured while a video is made.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from turbort_cuda.configs import Config, row

log = logging.getLogger("turbort")
VARIABLE = "TURBORT_CUDA_TUNING"


def tuning_file() -> Path:
    """Where measured configurations are read from and saved to."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "turbort" / "cuda.json"


@cache
def measured() -> Mapping[str, Any]:
    """The content of the tuning file; empty where there is none. A broken file is reported once and ignored."""
    path = tuning_file()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("ignoring %s: %s", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def pick(kernel: str, capability: int, shape: str, *details: str) -> Config:
    """The configuration for a launch: measured for the first of `details` that was, measured for its class, or shipped."""
    mine = measured().get(f"sm_{capability}", {}).get(kernel, {})
    shipped = row(kernel, capability, shape)
    return {**shipped, **next((mine[key] for key in (*details, shape) if mine.get(key)), {})}


def save(arch: str, kernel: str, key: str, config: Config) -> Path:
    """Add one measured configuration to the tuning file."""
    path = tuning_file()
    content = dict(measured())
    content.setdefault(arch, {}).setdefault(kernel, {})[key] = dict(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(path)
    measured.cache_clear()
    return path
