"""Small charts as inline SVG: lines over time and horizontal bars. No torch, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 180, 62, 26, 12
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563")

Series = tuple[str, Sequence[tuple[float, float]]]


def lines(series: Sequence[Series], *, x: str, y: str, limit: float | None = None) -> str:
    """Lines with a legend; `limit` is drawn as a dashed line (a gate)."""
    points = [point for _, row in series for point in row]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points] + ([limit] if limit is not None else [])
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(ys), max(ys)
    pad = (high_y - low_y) * 0.08 or abs(high_y) * 0.1 or 1.0
    low_y, high_y = low_y - pad, high_y + pad

    def at(px: float, py: float) -> tuple[float, float]:
        across = (px - low_x) / ((high_x - low_x) or 1)
        up = (py - low_y) / (high_y - low_y)
        return LEFT + across * (WIDTH - LEFT - 10), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    parts = [_axes(low_y + pad, high_y - pad, at, low_x, high_x, x, y)]
    if limit is not None:
        height = at(low_x, limit)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{height:.1f}" y2="{height:.1f}" class="limit"/>')
        parts.append(f'<text x="{WIDTH - 12}" y="{height - 4:.1f}" text-anchor="end" class="mark">gate {limit:g}</text>')
    for i, (_, row) in enumerate(series):
        path = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in row)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="1.8"/>')
    return _svg("".join(parts), HEIGHT) + _legend([name for name, _ in series])


def bars(rows: Sequence[tuple[str, float, str]], *, marked: Sequence[float] = ()) -> str:
    """Horizontal bars: name, value, text at the end. `marked` values are the dark part of each bar, from its start."""
    if not rows:
        return ""
    most = max(value for _, value, _ in rows) or 1.0
    parts = []
    for i, (name, value, text) in enumerate(rows):
        y, width = 4 + 22 * i, 330 * value / most
        dark = 330 * marked[i] / most if marked else 0.0
        parts.append(f'<text x="168" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="175" y="{y}" width="{max(1, width):.1f}" height="17" rx="2" class="bar"/>')
        parts.append(f'<rect x="175" y="{y}" width="{dark:.1f}" height="17" rx="2" class="dark"/>' if dark else "")
        parts.append(f'<text x="{181 + width:.1f}" y="{y + 13}">{escape(text)}</text>')
    return _svg("".join(parts), 8 + 22 * len(rows))


def _svg(body: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{body}</svg>'


def _legend(names: Sequence[str]) -> str:
    items = (f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{"".join(items)}</div>' if len(names) > 1 else ""


def _axes(low: float, high: float, at: object, low_x: float, high_x: float, x: str, y: str) -> str:
    assert callable(at)
    parts = []
    for value in (low, (low + high) / 2, high):
        height = at(low_x, value)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{height:.1f}" y2="{height:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value, anchor in ((low_x, "start"), (high_x, "end")):
        parts.append(f'<text x="{at(value, low)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{_short(value)}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" class="mark">{escape(x)}</text>')
    parts.append(f'<text x="4" y="{TOP}" class="mark">{escape(y)}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
