"""The oracle score of the embedded model: does a clip show the shapes, colours and motions of its prompt?

The judge is part of the recipe that made the model (`recipes/tiny_shapes/oracle.py`), which is in the repository and not in
the installed package; `find_judge` says so where it is missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Judge = Callable[[Any, str], tuple[int, int] | None]
"""judge(frames, prompt): objects that are fully right, and objects asked for; None for a prompt outside the grammar."""
RECIPE = "recipes.tiny_shapes"


def find_judge(model: str) -> tuple[Judge | None, str]:
    """The judge for a model and an empty note, or None and why there is none."""
    if model != "tiny":
        return None, f"{model} has no oracle"
    root = Path(__file__).resolve().parents[2]
    if not (root / Path(*RECIPE.split(".")) / "oracle.py").is_file():
        return None, "the judge is in the repository (recipes/tiny_shapes), not in the installed package"
    added = str(root) not in sys.path
    if added:
        sys.path.append(str(root))
    try:
        oracle = importlib.import_module(f"{RECIPE}.oracle")
        captions = importlib.import_module(f"{RECIPE}.captions")
    finally:
        if added:
            sys.path.remove(str(root))

    def judge(frames: Any, prompt: str) -> tuple[int, int] | None:
        scene = captions.parse(prompt)
        if scene is None:
            return None
        verdict = oracle.judge(frames, scene)
        return sum(row.right for row in verdict.objects), len(verdict.objects)

    return judge, ""
