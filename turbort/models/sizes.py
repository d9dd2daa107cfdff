"""Names for sizes (`480p`, `16:9`) and the size that fits a picture. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from turbort.errors import InputError
from turbort.models.config import ModelSpec

RESOLUTIONS: Mapping[str, tuple[int, int]] = {"480p": (832, 480), "540p": (960, 544), "720p": (1280, 720)}
"""Width and height in pixels that Wan's models are trained around; other shapes keep about the same area."""
CLOSE = 0.06
"""Relative difference of aspect ratios up to which a size counts as having the ratio: 832x480 is taken for 16:9."""
_ASPECT = re.compile(r"(\d{1,4}):(\d{1,4})", re.ASCII)


def step_of(spec: ModelSpec) -> tuple[int, int]:
    """(width, height) in pixels that one token covers: sizes are multiples of it."""
    height, width = (stride * patch for stride, patch in zip(spec.vae.stride[1:], spec.dit.patch[1:], strict=True))
    return width, height


def preset_size(text: str, spec: ModelSpec) -> tuple[int, int] | None:
    """(width, height) for `480p`, `16:9`, or both (`720p 9:16`, in any order, with space, comma or slash); None for other text.

    A resolution gives the area and an aspect ratio the shape; what is not given comes from the model's default size.
    """
    words = [word for word in re.split(r"[\s,/]+", text.strip().lower()) if word]
    aspects = [match for word in words if (match := _ASPECT.fullmatch(word))]
    names = [word for word in words if word in RESOLUTIONS]
    if not words or len(aspects) > 1 or len(names) > 1 or len(aspects) + len(names) != len(words):
        return None
    width, height = RESOLUTIONS[names[0]] if names else (spec.defaults.width, spec.defaults.height)
    if not aspects:
        return rounded(width, height, spec)
    across, down = int(aspects[0][1]), int(aspects[0][2])
    if not across or not down:
        raise InputError(f"aspect ratio {aspects[0][0]} has a zero", fix="write --size 16:9")
    return with_aspect(across / down, width, height, spec)


def with_aspect(aspect: float, width: int, height: int, spec: ModelSpec) -> tuple[int, int]:
    """About the area of width x height in the shape `aspect` = width / height; that size itself, or turned, where close."""
    for size in ((width, height), (height, width)):
        if abs(size[0] / size[1] / aspect - 1) <= CLOSE:
            return rounded(*size, spec)
    area = width * height
    return rounded(round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect)), spec)


def rounded(width: int, height: int, spec: ModelSpec) -> tuple[int, int]:
    """The nearest multiples of what one token covers, at least one."""
    across, down = step_of(spec)
    return max(1, round(width / across)) * across, max(1, round(height / down)) * down


def fit_picture(picture: tuple[int, int], spec: ModelSpec) -> tuple[int, int]:
    """The size of a video that continues a picture of (width, height): its shape, at most the model's default area.

    As Wan computes it: edges are rounded down to whole tokens.
    """
    across, down = step_of(spec)
    area, aspect = spec.defaults.width * spec.defaults.height, picture[0] / picture[1]
    width = max(1, int(math.sqrt(area * aspect) / across + 1e-9)) * across
    height = max(1, int(math.sqrt(area / aspect) / down + 1e-9)) * down
    return width, height
