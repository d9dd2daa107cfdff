"""The profile's section on strength levels: precisions that follow the content. No torch here."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from turbort.profile_fields import Section, Share

Decibels = Annotated[float, Field(ge=0, le=100)]


class Adaptive(Section):
    """Strength levels: sets of call sites that run their second kernel, chosen while a video is made by how its content looks."""

    enabled: bool = False
    """Whether levels are planned and chosen at all."""
    per: Literal["clip", "step"] = "clip"
    """`clip`: decided once, on what the first step predicts; `step`: anew before each step, on what the last step but one
    predicted, so that no device waits for the host."""
    signal: Literal["auto", "gradient", "motion", "error"] = "auto"
    """What is looked at in the predicted clean latents: how much neighbours or frames differ, or how far the first step's move
    between the strongest and the weakest level, which costs one more pass; `auto` as calibration found to go with errors best,
    `error` only from 20 steps on."""
    hard: Literal["auto", "high", "low"] = "auto"
    """Which values of the signal ask for more precision; `auto` as calibration found."""
    begin: Literal["low", "high"] = "high"
    """The level of the steps before anything is known: the weakest precisions or the strongest."""
    levels: tuple[Decibels, ...] = ()
    """PSNR in dB that each level is planned for, rising; the first takes the place of `quality.psnr`. Without them, or without
    calibration, there are two: the precisions as planned, and every second kernel."""
    quantiles: tuple[Share, ...] = (0.5,)
    """Share of the calibrated clips, the easiest first, that stays below each further level."""
    thresholds: tuple[float, ...] = ()
    """Values of the signal from which on each further level applies, instead of quantiles; needs `signal` and `hard`."""

    @property
    def count(self) -> int:
        """How many levels there are."""
        return max(2, len(self.levels))

    @model_validator(mode="after")
    def _consistent(self) -> Adaptive:
        if len(self.levels) == 1:
            raise ValueError("levels needs two values at least; leave it out for the planned precisions and every second kernel")
        if any(high <= low for low, high in pairwise(self.levels)):
            raise ValueError(f"levels must rise, and {', '.join(f'{value:g}' for value in self.levels)} do not")
        cuts = self.thresholds or self.quantiles
        word = "thresholds" if self.thresholds else "quantiles"
        if len(cuts) != self.count - 1:
            raise ValueError(f"{self.count} levels need {self.count - 1} {word}, not {len(cuts)}")
        if any(high < low for low, high in pairwise(self.quantiles)):
            raise ValueError("quantiles must rise")
        if self.thresholds and "auto" in (self.signal, self.hard):
            raise ValueError("thresholds belong to one signal; write signal: gradient (or motion) and hard: high (or low)")
        if self.signal == "error" and self.per == "step":
            raise ValueError("signal error compares the levels in the first step only; write per: clip")
        ordered = self.thresholds if self.hard != "low" else self.thresholds[::-1]
        if any(high < low for low, high in pairwise(ordered)):
            raise ValueError(f"thresholds must {'fall' if self.hard == 'low' else 'rise'} from level to level")
        return self
