"""Peaks in the report, and memory given back: on the CPU, with a device that says what the test wants it to say."""
# ruff: noqa: F811 - fixtures of other files

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_real_models import JOB, Make, make, plain  # noqa: F401 - `make` is a fixture
from tests.e2e.test_recovery import Fail, fail, flexible  # noqa: F401 - `fail` is a fixture
from turbort.backend import MemoryStats
from turbort.embed import Embedder, PromptCache
from turbort.models.wan_vae import WanVae
from turbort.reference import Reference
from turbort.session import Session


class Pretended:
    """What the device says, and how often its cache was emptied."""

    def __init__(self) -> None:
        self.peak, self.used, self.reserved = 100, 50, 60
        self.emptied = 0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    said = Pretended()

    def memory(self: Reference, device: Any) -> MemoryStats:
        return MemoryStats(said.used, said.peak, 10**12, said.reserved, said.peak + 7)

    def empty(self: Reference, device: Any) -> None:
        said.emptied += 1
        said.reserved = said.used

    monkeypatch.setattr(Reference, "memory", memory)
    monkeypatch.setattr(Reference, "empty_cache", empty)
    return said


def test_the_peaks_of_an_attempt_that_failed_do_not_count(
    make: Make,
    fail: Fail,
    device: Pretended,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = fail(WanVae, "_decode", 1, 1)
    real = WanVae._decode

    def decode(self: WanVae, *args: Any, **kwargs: Any) -> Any:
        device.peak = 300 if calls[0] else 900
        return real(self, *args, **kwargs)

    with Session.open(make("ti2v"), flexible(), jobs=[JOB]) as session:
        monkeypatch.setattr(WanVae, "_decode", decode)
        session.memory = replace(session.memory, residency=replace(session.memory.residency, chunk=2))
        session.generate([JOB])
        report = session.report()
        loads = [row for row in session.watch.used if row[2] == "load"]
    assert len(report["memory"]["steps_down"]) == 1
    assert report["peak_bytes"]["decode"] == 300
    assert report["reserved_bytes"]["decode"] == 307
    assert report["peak_bytes"]["load"] == 100
    assert len(loads) == 2  # once: nothing was loaded again


def test_a_prompt_from_the_cache_has_no_peak_of_the_encoder(make: Make, device: Pretended, tmp_path: Path) -> None:
    spec, cache = make("ti2v"), PromptCache(tmp_path)
    for found in (True, False):
        device.emptied = 0
        with Session.open(spec, plain(), jobs=[JOB], cache=cache) as session:
            session._texts_of([JOB.resolved(spec)], lambda event: None)
            report = session.report()
            assert session._embedder.loads == found
            assert ("text" in report["peak_bytes"]) is found
            assert ("text" in report["reserved_bytes"]) is found
            assert "text" in report["seconds"]
            assert device.emptied == found  # the encoder's memory goes back, whoever wants it


def test_a_new_prompt_takes_the_transformer_away_where_the_encoder_comes_first(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, beside = make("ti2v"), []
    real = Embedder._load

    def load(self: Embedder) -> Any:
        beside.append(bool(session._experts._ready))
        return real(self)

    other = replace(JOB, prompt="a blue square moves left")
    with Session.open(spec, plain(), jobs=[JOB]) as session:
        usual = session.generate([other])[0].frames
    with Session.open(spec, plain(), jobs=[JOB]) as session:
        monkeypatch.setattr(Embedder, "_load", load)
        session.memory = replace(session.memory, residency=replace(session.memory.residency, text="first"))
        for job in (JOB, other, JOB, other):
            made = session.generate([job])[0].frames
    assert beside == [False, False]
    assert made.tobytes() == usual.tobytes()


def test_memory_of_earlier_stages_goes_back_where_a_stage_would_not_fit_beside_it(make: Make, device: Pretended) -> None:
    with Session.open(make("ti2v"), plain(), jobs=[JOB]) as session:
        wanted = session.memory.stage("decode").reserved
        for budget, cached, emptied in ((wanted + 10, 10, 0), (wanted + 10, 11, 1), (None, 11, 0)):
            session.memory = replace(session.memory, budget=budget)
            device.reserved, device.emptied = device.used + cached, 0
            with session._during("decode"):
                pass
            assert device.emptied == emptied


@pytest.mark.parametrize("eager", [False, True])
def test_a_step_is_not_compiled_where_the_residency_says_so(eager: bool, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_step(self: Reference, step: Any, device: Any) -> Any:
        compiled.append(step)
        return step

    monkeypatch.setattr(Reference, "compile_step", compile_step)
    spec = make("ti2v")
    with Session.open(spec, plain(), jobs=[JOB]) as session:
        plan = replace(session.plan, header={**session.plan.header, "graph": "captured"})
        usual = session.memory
    compiled.clear()
    with Session.open(
        spec, plain(), plan=plan, jobs=[JOB], memory=replace(usual, residency=replace(usual.residency, eager=eager))
    ):
        assert len(compiled) == (not eager)
