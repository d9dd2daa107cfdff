"""What a run says at its end: files, seconds per stage, realtime factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.cli import ui

if TYPE_CHECKING:
    from turbort.job import Result

STAGES = ("load", "text", "sample", "decode", "write")


def summary(results: Sequence[Result], receipts: Sequence[Mapping[str, Any]], wall: float, report: Path) -> dict[str, Any]:
    """The end of a run as data. `realtime` is seconds of video per second of waiting, loading included."""
    seconds: dict[str, float] = {}
    peaks: list[int] = []
    for receipt in receipts:
        for stage, value in receipt["seconds"].items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 3)
        peaks += receipt.get("peak_bytes", {}).values()
    video = sum(found.video_seconds for found in results)
    return {
        "videos": [
            {
                "path": str(found.path),
                "prompt": found.job.prompt,
                "seed": found.job.seed,
                "frames": found.job.frames,
                "fps": found.job.fps,
            }
            for found in results
        ],
        "seconds": seconds,
        "wall_seconds": round(wall, 3),
        "video_seconds": round(video, 3),
        "realtime": round(video / wall, 4) if wall > 0 else None,
        "peak_bytes": max(peaks, default=None),
        "plans": [receipt["plan"]["digest"] for receipt in receipts],
        "rehearsal": any(receipt["plan"].get("rehearsal") for receipt in receipts),
        "fallbacks": sum(len(receipt["fallbacks"]) for receipt in receipts),
        "monitor": [told for receipt in receipts for told in _watched(receipt.get("monitor", {}))],
        "adaptive": [told for receipt in receipts for told in _levels(receipt.get("adaptive", {}))],
        "unmet": [row for receipt in receipts for row in receipt.get("unmet", ())],
        "report": str(report),
    }


def show(data: Mapping[str, Any]) -> None:
    """The summary in a few lines on stderr."""
    from turbort.units import format_bytes

    videos = data["videos"]
    stages = [stage for stage in STAGES if stage in data["seconds"]]
    stages += [stage for stage in data["seconds"] if stage not in stages]
    parts = ", ".join(f"{stage} {data['seconds'][stage]:.2f} s" for stage in stages)
    count = f"{len(videos)} video{'s' if len(videos) != 1 else ''}"
    ui.say(f"made {count} of {data['video_seconds']:.1f} s in {data['wall_seconds']:.1f} s", "good")
    ui.say(f"  stages    {parts}")
    ui.say(f"  realtime  {data['realtime']:.3g} x (seconds of video made per second)")
    if data["peak_bytes"]:
        ui.say(f"  memory    {format_bytes(data['peak_bytes'])} at most")
    if data["fallbacks"]:
        ui.say(
            f"  fallback  {data['fallbacks']} call sites ran on something else than the profile asked; the report says why",
            "warn",
        )
    for line in data["monitor"]:
        ui.say(f"  monitor   {line}", "warn")
    for line in data["adaptive"]:
        ui.say(f"  levels    {line}")
    for row in data["unmet"]:
        what = f"{row['stage']} {row['op']} at {row['precision']}"
        ui.say(f"  receipt   {what}: planned for {row['planned']} call sites, and {row['ran']} ran so", "warn")
    if data["rehearsal"]:
        ui.say("  rehearsal of another platform's precisions: the numerics are real, the timings mean nothing", "warn")
    ui.say(f"  report    {data['report']}")


def _watched(monitor: Mapping[str, Any]) -> list[str]:
    """What the outlier monitor did, if it did anything, and why it did less than the profile asks for."""
    found = [str(monitor["note"])] if monitor.get("note") else []
    events = [event for row in monitor.get("transformers", ()) for event in row["events"]]
    for action, words in (("promote", "run at the next precision"), ("warn", "have outliers and stay as they are")):
        mine = [event for event in events if event["action"] == action]
        if mine:
            sites, steps = len({site for event in mine for site in event["sites"]}), sorted({event["step"] for event in mine})
            most = max(event["share"] for event in mine)
            found.append(f"{sites} call sites {words}, from step {', '.join(map(str, steps))} on; up to {most:.0%} outliers")
    return found


def _levels(adaptive: Mapping[str, Any]) -> list[str]:
    """How many steps ran at each strength level, or why there are none."""
    if not adaptive.get("enabled"):
        return [f"off: {adaptive['note']}"] if adaptive.get("note") else []
    levels = [row["level"] for video in adaptive["videos"] for row in video["steps"]]
    shares = ", ".join(f"{levels.count(level)} at level {level}" for level in range(len(adaptive["levels"])))
    return [f"{len(levels)} steps by {adaptive['signal']}: {shares}"]
