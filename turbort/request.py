"""What the user asked for, checked before any heavy work: sizes, counts, prompts, prompt files. No torch here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from turbort.errors import InputError, nearest
from turbort.job import Job, check_image
from turbort.models.sizes import RESOLUTIONS, preset_size
from turbort.models.spec import ModelSpec

MAX_EDGE = 8192
MAX_FRAMES = 4097
MAX_STEPS = 1000
MAX_FPS = 240
MAX_GUIDANCE = 100.0
MAX_PROMPT = 20_000
MAX_PROMPT_FILE = 16 * 2**20
RCM_STEPS = 4
_SIZE = re.compile(r"\s*(\d{1,6})\s*[xX*]\s*(\d{1,6})\s*\Z", re.ASCII)


def parse_size(text: str, spec: ModelSpec | None = None) -> tuple[int, int]:
    """`"832x480"` -> (832, 480): width, height in pixels. With a model also `480p`, `16:9` and both. InputError otherwise."""
    match = _SIZE.match(text)
    if not match:
        named = preset_size(text, spec) if spec else None
        if named:
            return named
        words = f", or {', '.join(RESOLUTIONS)}, 16:9, 9:16" if spec else ""
        raise InputError(f"size {text!r} is not WIDTHxHEIGHT", fix=f"write two numbers of pixels, such as --size 832x480{words}")
    return int(match.group(1)), int(match.group(2))


def check_size(width: int, height: int, spec: ModelSpec) -> None:
    """InputError unless both edges are positive multiples of what one token of the model covers (16 pixels for Wan 2.1)."""
    step_h, step_w = (stride * patch for stride, patch in zip(spec.vae.stride[1:], spec.dit.patch[1:], strict=True))
    for name, edge, step in (("width", width, step_w), ("height", height, step_h)):
        if not 1 <= edge <= MAX_EDGE or edge % step:
            best = (_round_to(width, step_w), _round_to(height, step_h))
            raise InputError(
                f"size {width}x{height}: {name} {edge} is not a multiple of {step} from {step} to {MAX_EDGE // step * step}",
                fix=f"use --size {best[0]}x{best[1]}",
            )


def _round_to(edge: int, step: int) -> int:
    return min(max(round(edge / step), 1), MAX_EDGE // step) * step


def check_frames(frames: int, spec: ModelSpec) -> None:
    """InputError unless frames = 1 + stride * k, because the VAE keeps the first frame and folds the rest in fours."""
    stride = spec.vae.stride[0]
    if not 1 <= frames <= MAX_FRAMES or (frames - 1) % stride:
        best = min(max(round((frames - 1) / stride), 0), (MAX_FRAMES - 1) // stride) * stride + 1
        raise InputError(f"frames {frames} is not {stride}k+1 from 1 to {MAX_FRAMES}", fix=f"use --frames {best}")


def check_job(job: Job, spec: ModelSpec) -> None:
    """InputError for the first value of a job that the model cannot run with."""
    check_image(job, spec)
    full = job.resolved(spec)
    if not job.prompt.strip():
        raise InputError("the prompt is empty", fix='say what to show, such as --prompt "a red circle moves right"')
    for name, text in (("prompt", job.prompt), ("negative prompt", job.negative_prompt or "")):
        if len(text) > MAX_PROMPT:
            raise InputError(f"the {name} has {len(text)} characters, more than {MAX_PROMPT}", fix="shorten it")
        if any(0xD800 <= ord(char) < 0xE000 for char in text):
            raise InputError(f"the {name} is not valid text (it holds bytes that are not UTF-8)", fix="write it in UTF-8")
    check_size(_given(job.width, full.width), _given(job.height, full.height), spec)
    check_frames(_given(job.frames, full.frames), spec)
    steps = _given(job.steps, full.steps)
    most = RCM_STEPS if spec.sampler == "rcm" else MAX_STEPS
    _within("steps", steps, 1, most, "the rCM sampler has schedules of 1 to 4 steps" if spec.sampler == "rcm" else "")
    _within("fps", _given(job.fps, full.fps), 1, MAX_FPS)
    _within("seed", job.seed, 0, 2**63 - 1)
    guidance = full.guidance if job.guidance is None else job.guidance
    if guidance is None or not math.isfinite(guidance) or not 0 <= guidance <= MAX_GUIDANCE:
        raise InputError(f"guidance {guidance} is not a number from 0 to {MAX_GUIDANCE:g}", fix="use --guidance 5, or 1 for none")


def _given(asked: int | None, default: int | None) -> int:
    """What was asked, zero included, or the default."""
    return asked if asked is not None else default or 0


def _within(name: str, value: int, low: int, high: int, why: str = "") -> None:
    if not low <= value <= high:
        raise InputError(
            f"{name} {value} is not from {low} to {high}{f' ({why})' if why else ''}",
            fix=f"use --{name} {min(max(value, low), high)}",
        )


def read_prompts(path: Path, base: Job, spec: ModelSpec) -> list[Job]:
    """The jobs of a prompt file: one prompt a line, or one JSON object a line with options of its own.

    Empty lines and lines that begin with `#` are skipped. A JSON object needs `prompt` and may have `seed`, `size`
    ("832x480"), `frames`, `fps`, `steps`, `guidance`, `negative_prompt`, `image` and `out`; what it leaves out comes from `base`.
    Raises InputError with file and line for the first line that is wrong.
    """
    jobs: list[Job] = []
    for number, line in enumerate(_lines(path), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            job = _from_json(text, base, spec) if text.startswith("{") else replace(base, prompt=text)
            check_job(job, spec)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error.message}", tried=error.tried, fix=error.fix) from None
        jobs.append(job)
    if not jobs:
        raise InputError(
            f"{path} holds no prompt", fix='write one prompt a line, or JSON lines such as {"prompt": "...", "seed": 1}'
        )
    return jobs


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_PROMPT_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read prompts {path}: {error.strerror or error}", fix="give an existing text file") from None
    if len(raw) > MAX_PROMPT_FILE:
        raise InputError(f"prompts {path} is larger than {MAX_PROMPT_FILE // 2**20} MiB", fix="split the file")
    try:
        # Not splitlines(): a prompt may hold U+2028 and its kind, which are no line ends in JSON lines.
        return raw.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text", fix="save the file as UTF-8") from None


_OPTIONS: Mapping[str, tuple[type, str]] = {
    "prompt": (str, "text"),
    "negative_prompt": (str, "text"),
    "seed": (int, "a whole number"),
    "size": (str, 'text such as "832x480"'),
    "frames": (int, "a whole number"),
    "fps": (int, "a whole number"),
    "steps": (int, "a whole number"),
    "guidance": (float, "a number"),
    "out": (str, "a file name"),
    "image": (str, "a file name"),
}


def _from_json(text: str, base: Job, spec: ModelSpec) -> Job:
    """One JSON line as a job over `base`."""
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"not valid JSON: {reason}", fix='write {"prompt": "...", "seed": 1}') from None
    changes: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _OPTIONS:
            close = nearest(key, _OPTIONS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"unknown option {key!r}{hint}", fix=f"known options: {', '.join(_OPTIONS)}")
        kind, words = _OPTIONS[key]
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits:
            raise InputError(f"{key}: {value!r} is not {words}", fix=f"give {words}")
        changes[key] = value
    if "prompt" not in changes:
        raise InputError("the option 'prompt' is missing", fix='write {"prompt": "..."}')
    if "size" in changes:
        changes["width"], changes["height"] = parse_size(changes.pop("size"), spec)
    for name in ("out", "image"):
        if name in changes:
            changes[name] = Path(changes[name])
    return replace(base, **changes)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("an option is given twice")
    return data


def grammar_warning(prompts: list[str], spec: ModelSpec) -> str | None:
    """What to tell the user when a small model was not trained on the words of a prompt; None when it was.

    The grammar file is JSON: `pattern` (a regular expression for the whole prompt) and `examples`.
    """
    if spec.prompt_grammar is None or not spec.prompt_grammar.is_file():
        return None
    grammar = json.loads(spec.prompt_grammar.read_text(encoding="utf-8"))
    pattern = re.compile(grammar["pattern"])
    outside = [prompt for prompt in prompts if not pattern.fullmatch(prompt)]
    if not outside:
        return None
    more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
    examples = "\n".join(f"  - {example}" for example in grammar.get("examples", [])[:4])
    return f"{outside[0]!r}{more}: {spec.name} was not trained on such prompts, so expect nothing of them. It knows\n{examples}"
