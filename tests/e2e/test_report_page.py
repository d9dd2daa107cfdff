"""`turbort report --html`: one page with everything in it, from a verification and from a plain run."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from turbort.cli import app
from turbort.quality.charts import bars, lines
from turbort.quality.map import precision_map

pytest.importorskip("skimage")
pytest.importorskip("cv2")
VOID = {"meta", "img", "br", "line", "rect", "polyline"}


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app([str(arg) for arg in args], prog_name="turbort")
    return int(ended.value.code or 0)


class Page(HTMLParser):
    """Headings, pictures and references of a page; every tag must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.pictures = 0
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.pictures += tag == "img"
        self.references += [found[key] for key in ("src", "href") if key in found]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_a_verification_becomes_one_self_contained_page(little: Path, tmp_path: Path) -> None:
    written = tmp_path / "v.report.json"
    assert run("verify", "-m", little, "--profile", "cpu", "-p", "a red <b> circle", "--steps", "2", "-o", written) == 0
    assert run("report", written, "--html") == 0
    page = Page((tmp_path / "v.report.html").read_text())
    assert page.open == []
    assert page.headings == [
        "Gates", "Frames", "Quality over time", "Precision map", "Time", "Memory over time", "Monitor", "What ran",
    ]  # fmt: skip
    assert page.pictures == 3 * 8  # three rows of the frames that are kept
    assert all(reference.startswith("data:image/png") for reference in page.references)


def test_a_plain_run_has_a_page_too_and_other_files_are_refused(little: Path, tmp_path: Path, capsys: Any) -> None:
    args = ("run", "-m", little, "--profile", "cpu", "-p", "a red circle", "--steps", "1", "-q", "--profile-ops")
    assert run(*args, "-o", tmp_path / "a.npy") == 0
    assert run("report", tmp_path / "a.report.json", "--html", "-o", tmp_path / "x.html") == 0
    page = Page((tmp_path / "x.html").read_text())
    assert page.headings == ["Precision map", "Time", "Memory over time", "Monitor", "What ran"]
    assert "quantising" in (tmp_path / "x.html").read_text()
    assert run("report", tmp_path / "a.report.json") == 0
    assert "sla_attention" in capsys.readouterr().out
    (tmp_path / "no.json").write_text(json.dumps({"a": 1}))
    assert run("report", tmp_path / "no.json", "--html") == 2
    assert "is not a report" in capsys.readouterr().err


def test_the_map_marks_what_was_promoted() -> None:
    sites = [{"path": "dit/blocks.{0-1}.ffn.0.op", "op": "linear", "precision": "w8a8", "kernel": "a/b"}]
    event = {"action": "promote", "sites": ["dit/blocks.1.ffn.0.op"], "to": "fp32", "step": 2}
    table = precision_map(sites, {"dit/blocks.0.ffn.0.op": 1e-4}, [event])
    assert table.count('class="up"') == 2  # the cell and its legend
    assert "promoted to fp32 at step 2" in table
    assert "NMSE 1.00e-04" in table


def test_charts_scale_to_their_data() -> None:
    chart = lines([("a", [(0, 1.0), (10, 3.0)]), ("b", [(0, 2.0)])], x="t", y="dB", limit=28.0)
    assert "gate 28" in chart
    assert "<span>" in chart
    assert lines([("a", [])], x="t", y="y") == ""
    assert 'width="330.0"' in bars([("x", 2.0, "2 s"), ("y", 1.0, "1 s")])
