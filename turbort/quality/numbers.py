"""From measurements to judged numbers: which gate each belongs to, and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from turbort.profile import Profile
from turbort.quality import metrics
from turbort.quality.gates import FEW_STEPS, ORACLE_DROP, Number, at_least, at_most, informative, ratio
from turbort.quality.sites import Site

if TYPE_CHECKING:
    from turbort.quality.verify import Clip


def numbers_of(
    clips: Sequence[Clip], sites: Sequence[Site], unmet: Sequence[Mapping[str, Any]], profile: Profile, steps: int, no_judge: str
) -> list[Number]:
    """Every number of a verification in the order in which trouble shows: receipt, op, forward, video, temporal, oracle."""
    return [
        _receipt(sites, unmet),
        *_ops(sites),
        _forward(clips, profile),
        *_video(clips, profile, steps),
        *_temporal(clips, profile),
        _oracle(clips, no_judge),
    ]


def _receipt(sites: Sequence[Site], unmet: Sequence[Mapping[str, Any]]) -> Number:
    """A run that silently stayed in 16 bits would pass every other gate."""
    missing = sum(row["planned"] - row["ran"] for row in unmet)
    wide = [site.choice.path for site in sites if site.stayed_wide]
    quantised = sum(site.own is not None for site in sites)
    note = f"of {quantised} quantised sites" + (f"; {wide[0]} rounds less than its precision does" if wide else "")
    return at_most("sites that did not run as planned", missing + len(wide), 0, gate="receipt", note=note)


def _ops(sites: Sequence[Site]) -> list[Number]:
    if not sites:
        return [informative("sites over their error budget", 0, note="the profile computes what the baseline computes")]
    failed = [site for site in sites if not site.passed]
    worst = max(sites, key=lambda site: site.nmse)
    return [
        at_most("sites over their error budget", len(failed), 0, gate="op", note=f"of {len(sites)} compared"),
        informative("largest NMSE of a site", worst.nmse, note=f"{worst.choice.path} at {worst.choice.precision}"),
    ]


def _forward(clips: Sequence[Clip], profile: Profile) -> Number:
    lowest = min(value for clip in clips for value in clip.forward)
    note = "lowest over prompts and steps, at the baseline's states"
    return at_least("latent PSNR of one forward", round(lowest, 3), profile.quality.psnr, unit="dB", gate="forward", note=note)


def _video(clips: Sequence[Clip], profile: Profile, steps: int) -> list[Number]:
    psnr = round(min(metrics.psnr(clip.reference, clip.frames) for clip in clips), 3)
    ssim = round(min(float(np.mean(metrics.ssim_of_frames(clip.reference, clip.frames))) for clip in clips), 4)
    found = [metrics.lpips(clip.reference, clip.frames) for clip in clips]
    values = [value for value, _ in found if value is not None]
    perceptual = informative("LPIPS", max(values) if values else None, note=found[0][1] or "highest over prompts")
    note = f"lowest over prompts, {steps} steps"
    if steps > FEW_STEPS:
        why = f"not judged: {steps} steps drift apart; the forward and temporal gates judge"
        return [informative("video PSNR", psnr, unit="dB", note=why), informative("video SSIM", ssim, note=why), perceptual]
    return [
        at_least("video PSNR", psnr, profile.quality.psnr, unit="dB", gate="video", note=note),
        at_least("video SSIM", ssim, profile.quality.ssim, gate="video", note=note),
        perceptual,
    ]


def _temporal(clips: Sequence[Clip], profile: Profile) -> list[Number]:
    warp = max(ratio(clip.after.warp, clip.before.warp) for clip in clips)
    flicker = max(ratio(clip.after.flicker, clip.before.flicker) for clip in clips)
    latent = max(ratio(clip.after.latent, clip.before.latent) for clip in clips)
    limit = profile.quality.temporal
    note = "of the quantised video over the baseline's, highest over prompts"
    return [
        at_most("warp error", round(warp, 4), limit, unit="x", gate="temporal", note=note),
        at_most("flicker index", round(flicker, 4), limit, unit="x", gate="temporal", note=note),
        at_most("flicker of latent frames", round(latent, 4), limit, unit="x", gate="temporal", note=note),
    ]


def _oracle(clips: Sequence[Clip], no_judge: str) -> Number:
    rows = [clip.right for clip in clips if clip.right is not None]
    if not rows:
        return informative("oracle score", None, note=no_judge or "no prompt is in the model's grammar")
    wanted = sum(row[2] for row in rows)
    before, after = (sum(row[i] for row in rows) / wanted for i in (0, 1))
    note = f"share of {wanted} objects that are right; the baseline has {before:.3f}"
    return at_least("oracle score", round(after, 4), round(before - ORACLE_DROP, 4), gate="oracle", note=note)
