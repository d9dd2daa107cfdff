"""Choosing a strength level while a video is made: the signal of each step, read without making the device wait.

A value is sent to the host when its step has been queued, and read later. Per clip, the first step's value is read before the
second step begins: one wait per video. Per step, a step's level is that of the last step but one, whose value has arrived while
the last step was still computing: no wait at all. Which value is used never depends on how fast anything ran, so a run can be
repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from turbort.guard.strength import Strengths
from turbort.looks import ERROR, SIGNALS
from turbort.models.signal import difference, measure

Read = Callable[[], list[list[float]]]


@dataclass
class _Clip:
    """Videos that are made together: their prompts, the times and levels of their steps, and their signals."""

    prompts: tuple[str, ...]
    times: list[float] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    signals: list[Read] = field(default_factory=list)
    moved: Read | None = None


class Adaptation:
    """The level of every step of a session's videos.

    Protocol, per group of jobs: `begin`; then per step `level(t)` before it and `seen(clean)` after it. Where `other` is a level,
    the step is computed at that one, too, and `compared` says which of both results counts.
    """

    def __init__(self, strengths: Strengths, device: torch.device) -> None:
        self.strengths, self.device = strengths, device
        self._clips: list[_Clip] = []

    def begin(self, prompts: Sequence[str]) -> None:
        """New videos, of which nothing is known."""
        self._clips.append(_Clip(tuple(prompts)))

    def level(self, t: float) -> frozenset[str]:
        """The groups that run their second kernel in the step at the model's time `t`, which begins now."""
        clip, how = self._clips[-1], self.strengths
        known = len(clip.times)
        source = 0 if how.per == "clip" else known - 2
        if how.per == "clip" and known > 1:
            level = clip.levels[1]
        elif 0 <= source < min(known, len(clip.signals)):
            level = how.cut(clip.times[source]).level(_values(clip, source, how.signal))
        else:
            level = how.begin
        clip.times.append(t)
        clip.levels.append(level)
        return how.levels[level].promoted

    def seen(self, clean: Tensor) -> None:
        """The clean latents [B, C, T, h, w] that the step has predicted."""
        self._clips[-1].signals.append(_sent(measure(clean)))

    @property
    def other(self) -> frozenset[str] | None:
        """The level farthest from the one that has just been given, where the signal is how far the two differ; else None."""
        clip, how = self._clips[-1], self.strengths
        if how.signal != ERROR or len(clip.times) != 1:
            return None
        return how.levels[0 if how.begin else -1].promoted

    def compared(self, clean: Tensor, other: Tensor) -> bool:
        """Given what the first step predicts at its own level and at the other: whether to go on with the other's result.

        It is where the clip's level is that other one. Both are there, so the choice holds from the first step on; it is read at
        once, the one wait of the video.
        """
        clip, how = self._clips[-1], self.strengths
        clip.moved = _sent(difference(clean, other)[:, None])
        level = how.cut(clip.times[0]).level(_values(clip, 0, ERROR))
        if level != (0 if how.begin else len(how.levels) - 1):
            return False
        clip.levels[0] = level
        return True

    def as_data(self) -> list[dict[str, Any]]:
        """Per group of videos: prompts, and per step its time, signals (one per video) and level."""
        return [
            {"prompts": list(clip.prompts), "steps": [_row(clip, number) for number in range(len(clip.levels))]}
            for clip in self._clips
            if clip.signals
        ]


def _values(clip: _Clip, step: int, signal: str) -> list[float]:
    """One value per video."""
    if signal == ERROR:
        return [row[0] for row in clip.moved()] if clip.moved else []
    return [row[SIGNALS.index(signal)] for row in clip.signals[step]()]


def _row(clip: _Clip, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"step": number + 1, "t": round(clip.times[number], 3), "level": clip.levels[number]}
    if number < len(clip.signals):
        values = clip.signals[number]()
        row |= {name: [round(value[i], 6) for value in values] for i, name in enumerate(SIGNALS)}
    if number == 0 and clip.moved:
        row[ERROR] = [float(f"{value:.6g}") for value in _values(clip, 0, ERROR)]
    return row


def _sent(value: Tensor) -> Read:
    """Send a small tensor on its way to the host; the result waits for it, and for nothing that was queued after it."""
    if value.device.type != "cuda":
        found: list[list[float]] = value.tolist()
        return lambda: found
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    host.copy_(value, non_blocking=True)
    arrived = torch.Event(value.device)
    arrived.record()

    def read() -> list[list[float]]:
        arrived.synchronize()
        values: list[list[float]] = host.tolist()
        return values

    return read


def report(strengths: Strengths | None, adaptation: Adaptation | None) -> dict[str, Any]:
    """The part of a run report on levels: whether they were chosen, by what, and how it went."""
    if strengths is None:
        return {"enabled": False}  # also in a replay, whose policy holds what the levels were
    return {"enabled": adaptation is not None, **strengths.as_data(), "videos": adaptation.as_data() if adaptation else []}
