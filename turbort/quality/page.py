"""One self-contained HTML page from a report: no scripts, no other files, readable offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from turbort.quality import charts
from turbort.quality.map import precision_map
from turbort.units import format_bytes

MIB = 2**20


def page(report: Mapping[str, Any], frames: Mapping[str, Any] | None = None) -> str:
    """The page of a run's or a verification's report; `frames` is what `load_frames` returned."""
    found = report.get("verification")
    plan = report["plan"]
    title = f"{plan['model']} in {plan['profile']}"
    events = [event for part in report.get("monitor", {}).get("transformers", ()) for event in part["events"]]
    sections = [
        ("Gates", _gates(found) if found else ""),
        ("Frames", _frames(found, frames) if found and frames else ""),
        ("Quality over time", _quality(found, report) if found else ""),
        ("Precision map", _map(report, found, events)),
        ("Time", _time(report)),
        ("Memory over time", _memory(report)),
        ("Monitor", _monitor(report.get("monitor"), events)),
        ("Strength levels", _levels(report.get("adaptive"))),
        ("What ran", _executed(report)),
    ]
    body = "".join(f"<section><h2>{escape(name)}</h2>{text}</section>" for name, text in sections if text)
    style = files("turbort.quality").joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style>'
        f"<main><h1>{escape(title)}</h1>{_head(report, found)}{body}</main></html>\n"
    )


def _head(report: Mapping[str, Any], found: Mapping[str, Any] | None) -> str:
    plan, device = report["plan"], report["device"]
    width, height = plan["size"]
    facts = [device["name"], f"{width}x{height}, {plan['frames']} frames", f"plan {plan['digest']}"]
    facts += ["rehearsal: numerics real, timings not"] if plan.get("rehearsal") else []
    line = f"<p>{escape(' · '.join(facts))}</p>"
    if found is None:
        return line
    word, kind = ("every gate passed", "good") if found["passed"] else ("below a gate", "bad")
    return f'{line}<p><b class="{kind}">{word}</b> against {escape(found["baseline"])}</p>'


def _gates(found: Mapping[str, Any]) -> str:
    words = {True: ("passed", "good"), False: ("failed", "bad"), None: ("for information", "")}
    rows = []
    for number in found["numbers"]:
        word, kind = words[number["passed"]]
        value = "" if number["value"] is None else f"{number['value']:.4g} {number['unit']}"
        verdict = f'<b class="{kind}">{word}</b>'
        rows.append([number["gate"] or "–", number["name"], value, number["limit"], verdict, number["note"]])
    worst = [_worst(row) for row in found["worst"]]
    text = _table(("gate", "number", "value", "asked", "verdict", ""), rows, raw=4)
    title = "<h3>Largest errors, and what promoting them would cost</h3>"
    return text + (title + _table(("site", "at", "NMSE", "next", "cost", ""), worst) if worst else "")


def _worst(row: Mapping[str, Any]) -> list[str]:
    return [row["path"], row["precision"], f"{row['nmse']:.2e}", row["next"] or "–", _cost(row), row["note"]]


def _cost(row: Mapping[str, Any]) -> str:
    if row["next"] is None:
        return ""
    weight = f", {format_bytes(row['weight'])} → {format_bytes(row['next_weight'])}" if row["next_weight"] else ""
    return f"{row['ms']:g} → {row['next_ms']:g} ms a call{weight}"


def _frames(found: Mapping[str, Any], frames: Mapping[str, Any]) -> str:
    from turbort.quality.pictures import filmstrip

    index = [int(i) for i in frames["index"]]
    return "".join(
        filmstrip(frames["reference"][i], frames["frames"][i], index, clip["psnr"], clip["prompt"])
        for i, clip in enumerate(found["clips"])
    )


def _quality(found: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    gate = next((float(n["limit"].split()[-1]) for n in found["numbers"] if n["name"] == "video PSNR" and n["limit"]), None)
    video = [(clip["prompt"], list(enumerate(clip["psnr"]))) for clip in found["clips"]]
    steps = [(clip["prompt"], list(enumerate(clip["forward_psnr"], start=1))) for clip in found["clips"]]
    return (
        "<h3>PSNR of each frame</h3>"
        + charts.lines(video, x="frame", y="dB", limit=gate)
        + "<h3>PSNR of each forward's clean latents</h3>"
        + charts.lines(steps, x="step", y="dB", limit=gate)
    )


def _map(report: Mapping[str, Any], found: Mapping[str, Any] | None, events: Sequence[Mapping[str, Any]]) -> str:
    errors = {site["path"]: site["nmse"] for site in (found or {}).get("sites", ())}
    return precision_map(report.get("sites", ()), errors, events)


def _time(report: Mapping[str, Any]) -> str:
    stages = charts.bars([(name, value, f"{value:.2f} s") for name, value in report["seconds"].items()])
    ops = report.get("ops")
    if not ops:
        return stages
    rows = [row for row in ops["ops"] if row["stage"] == "dit"]
    names = [(f"{row['op']} {row['precision']}", row["seconds"], f"{1000 * row['seconds']:.1f} ms") for row in rows]
    within = "within" if ops["within_budget"] else "over"
    quantising = f"quantising {ops['quantise_share']:.1%} of the transformer's time ({within} the budget "
    quantising += f"of {ops['quantise_budget']:.0%})"
    moved = f"{format_bytes(ops['bytes_moved'])} moved of {format_bytes(ops['bytes_needed'])} needed"
    facts = f"{quantising}, attention {ops['attention_share']:.1%}, {moved}"
    return f"{stages}<h3>Ops of the transformer; dark: quantising</h3><p>{facts}</p>" + charts.bars(
        names, marked=[row["quantise"] for row in rows]
    )


def _memory(report: Mapping[str, Any]) -> str:
    fine = report.get("ops", {}).get("memory") or [row[:2] for row in report.get("memory_over_time", ())]
    peaks = ", ".join(f"{name} {format_bytes(value)}" for name, value in report["peak_bytes"].items())
    line = charts.lines([("used", [(float(t), used / MIB) for t, used in fine])], x="seconds", y="MiB in use")
    return line + (f"<p>Peaks: {escape(peaks)}</p>" if peaks else "")


def _monitor(monitor: Mapping[str, Any] | None, events: Sequence[Mapping[str, Any]]) -> str:
    if monitor is None:
        return ""
    threshold = f"threshold {monitor['outlier_share']:.0%}"
    text = f"<p>{escape(monitor['mode'])}, {monitor['groups']} groups watched, {threshold}. {escape(monitor['note'])}</p>"
    rows = [
        [str(event["step"]), event["action"], event["site"], f"{event['share']:.1%}", f"{event['from']} → {event['to']}"]
        for event in events
    ]
    return text + (_table(("step", "event", "site", "outliers", "precision"), rows) if rows else "<p>No events.</p>")


def _levels(adaptive: Mapping[str, Any] | None) -> str:
    """Signal and level of every step; why there are none where the profile asks for them."""
    if not adaptive or (not adaptive["enabled"] and not adaptive.get("note")):
        return ""
    if not adaptive["enabled"]:
        return f"<p>Off: {escape(adaptive['note'])}</p>"
    signals = ("gradient", "motion", "error")
    rows = [
        [
            "; ".join(video["prompts"]),
            f"{row['step']}",
            *(", ".join(f"{value:.4g}" for value in row.get(name, ())) for name in signals),
            f"{row['level']}",
        ]
        for video in adaptive["videos"]
        for row in video["steps"]
    ]
    return f"<p>By {escape(adaptive['basis'])}.</p>" + _table(("prompt", "step", *signals, "level"), rows)


def _executed(report: Mapping[str, Any]) -> str:
    keys = ("stage", "op", "provider", "precision", "sites", "calls")
    rows = [[str(row[key]) for key in keys] for row in report["executed"]]
    unmet = [f"{row['op']} at {row['precision']}: {row['ran']} of {row['planned']} sites" for row in report.get("unmet", ())]
    bad = f'<p class="bad">Planned and not run: {escape("; ".join(unmet))}</p>' if unmet else ""
    return f"{bad}<p>{len(report['fallbacks'])} fallbacks.</p>{_table(keys, rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: int = -1) -> str:
    """An HTML table; column `raw` holds markup, every other cell is escaped."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{cell if i == raw else escape(cell)}</td>' for i, cell in enumerate(row))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
