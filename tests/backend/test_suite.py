"""The suite around the checks: ledger, outcomes, filters, the backend's own checks, the pytest door."""

import sys
import types
from dataclasses import replace

import pytest
import torch

from turbort import ops
from turbort.backend import Backend, Device, MemoryStats, Unavailable
from turbort.errors import InputError, UnavailableError
from turbort.hookspecs import hookimpl
from turbort.kernel import Kernel
from turbort.ops import OPS
from turbort.precision import PRECISIONS
from turbort.registry import Registry
from turbort.testing import Ledger, LedgerError, Outcome, Result, Suite, backend_checks, conformance, counts
from turbort.testing.case import samples_of
from turbort.testing.report import grouped, markdown

GOOD = Kernel("patchify", "good", "turbort.ops:patchify", ("bf16",))
BAD = Kernel("patchify", "bad", "turbort.testing.wrong:different_every_time", ("bf16",))


def never(call, device):
    return "0 of 1 rows fit"


def suite_of(*kernels, backend=None, **options):
    """A suite over a made-up backend with these kernels."""
    chosen = {name: options.pop(name) for name in ("op", "precision", "sample", "large") if name in options}
    table, features = kernels, options.pop("features", frozenset())

    class Made(backend or Backend):
        name = "made"

        def probe(self):
            return [Device("made", "CPU", "cpu", "cpu", dtypes=frozenset({"float32", "bfloat16", "float16"}), features=features)]

        def kernels(self):
            return table

    for key, value in options.items():
        setattr(Made, key, value)
    module = types.ModuleType("made")
    module.turbort_backends = hookimpl(lambda: (Made(),))
    return Suite("made", Registry(extra=[module]), **chosen)


def outcomes(suite):
    return {result.id: result.outcome for result in suite}


def test_every_op_has_samples_with_unique_ids():
    for name, spec in OPS.items():
        ids = [sample.id for sample in samples_of(spec)]
        assert ids, name
        assert len(ids) == len(set(ids)), name


def test_every_precision_of_an_op_is_offered_by_the_reference():
    offered = {(kernel.op, name) for kernel in Registry().kernels("reference") for name in kernel.precisions}
    assert {(spec.name, name) for spec in OPS.values() for name in spec.precisions} <= offered


def test_every_precision_belongs_to_an_op():
    assert set(PRECISIONS) == {name for spec in OPS.values() for name in spec.precisions}


def test_filters_choose_cases_and_leave_the_backend_alone():
    suite = suite_of(GOOD, BAD, sample="c16-*")
    assert suite.ids
    assert all(case_id.startswith("patchify/") and "/c16-" in case_id for case_id in suite.ids)


def test_a_filter_without_cases_is_bad_input():
    with pytest.raises(InputError, match="no case for --op nothing"):
        list(suite_of(GOOD, op="nothing"))


def test_large_samples_run_only_when_asked_for():
    kernel = Kernel("rms_norm", "good", "turbort.ops:rms_norm", ("bf16",))
    assert not any("32760" in case_id for case_id in suite_of(kernel).ids)
    assert any("32760" in case_id for case_id in suite_of(kernel, large=True).ids)


def test_outcomes():
    refusing = Kernel("patchify", "refusing", "turbort.ops:patchify", ("fp32",), rejects=never)
    suite = suite_of(
        GOOD,
        BAD,
        refusing,
        Kernel("unpatchify", "good", "turbort.ops:unpatchify", ("bf16", "fp16", "fp32")),
        unsupported={"unpatchify/good/bf16/*": "the device has no bf16 gather"},
        quarantine={"unpatchify/good/fp16/*": "hangs the device, #7"},
        known_issues={"patchify/bad/bf16/c16-*": "races, #8", "unpatchify/good/fp32/c16-9*": "wrong tail, #9"},
    )
    found = outcomes(suite)
    assert found["patchify/good/bf16/c16-9x16x16"] is Outcome.PASS
    assert found["patchify/bad/bf16/c16-9x16x16"] is Outcome.KNOWN
    assert found["patchify/bad/bf16/c36-3x10x14"] is Outcome.FAIL
    assert found["patchify/refusing/fp32/c16-9x16x16"] is Outcome.REJECTED
    assert found["unpatchify/good/bf16/c16-9x8x8"] is Outcome.UNSUPPORTED
    assert found["unpatchify/good/fp16/c16-9x8x8"] is Outcome.QUARANTINED
    assert found["unpatchify/good/fp32/c16-9x8x8"] is Outcome.FIXED
    assert found["ledger"] is Outcome.PASS
    assert found["backend/offers"] is Outcome.FAIL, "a kernel that refuses every sample must not look supported"


def test_a_stale_ledger_line_fails():
    result = suite_of(GOOD, unsupported={"patchify/gone/*": "was removed"}).run("ledger")
    assert result.outcome is Outcome.FAIL
    assert "patchify/gone/*" in result.message


@pytest.mark.parametrize("kind", ["known_issues", "quarantine"])
def test_temporary_waivers_name_an_issue(kind):
    with pytest.raises(LedgerError, match="names no issue"):
        Ledger.of(**{kind: {"linear/*": "sometimes wrong"}})
    Ledger.of(**{kind: {"linear/*": "sometimes wrong, #12"}})


def test_a_waiver_without_reason_is_refused():
    with pytest.raises(LedgerError, match="no reason"):
        Ledger.of(unsupported={"linear/*": " "})


class Wrong(Backend):
    """Implausible memory, explanations that are no text, and graphs that replay their first result."""

    def memory(self, device):
        return MemoryStats(used=9 << 30, peak=1, total=2)

    def explain(self, device):
        return {"driver": 580}

    def compile_step(self, step, device):
        first = []

        def replay(x):
            first.append(step(x))
            return first[0]

        return replay


def test_a_capture_that_replays_old_values_is_found():
    case_id = "patchify/good/bf16/c16-9x16x16"
    graphs = frozenset({"graph"})
    assert suite_of(GOOD, features=graphs).run(case_id).outcome is Outcome.PASS
    assert suite_of(GOOD, features=graphs, backend=Wrong).run(case_id).check == "capture"
    assert suite_of(replace(GOOD, capturable=False), features=graphs, backend=Wrong).run(case_id).outcome is Outcome.PASS


@pytest.mark.parametrize("check", ["memory", "explain", "compile-step"])
def test_backend_checks_find_what_is_wrong(check):
    assert suite_of(GOOD).run(f"backend/{check}").outcome is Outcome.PASS
    result = suite_of(GOOD, backend=Wrong).run(f"backend/{check}")
    assert (result.outcome, result.check) == (Outcome.FAIL, check)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (Kernel("patchfy", "a", "turbort.ops:patchify", ("bf16",)), "no op 'patchfy'"),
        (Kernel("patchify", "a", "turbort.ops:patchify", ("w8a8",)), "no contract for w8a8"),
        (Kernel("patchify", "a", "turbort.ops:patchify", ("bf61",)), "no precision 'bf61'"),
        (Kernel("patchify", "a", "turbort.ops:patchify", ()), "names no precision"),
        (Kernel("patchify", "a", "turbort.ops:missing", ("bf16",)), "loading its target"),
        (Kernel("patchify", "a", "turbort.ops:rms_norm", ("bf16",)), "does not take the arguments"),
        (Kernel("rms_norm", "a", "turbort.ops:rms_norm", ("bf16",), emits=("int3",)), "no scheme"),
        (Kernel("patchify", "a", "turbort.ops:patchify", ("bf16",), emits=("int8-token",)), "no argument `emit`"),
    ],
)
def test_kernel_tables_are_read(kernel, message):
    result = suite_of(GOOD, kernel).run("backend/kernels")
    assert result.outcome is Outcome.FAIL
    assert message in result.message


def test_only_kernels_that_emit_must_take_emit(monkeypatch):
    def rotate(x, weight, cos, sin, *, heads, eps=1e-6):
        raise AssertionError  # only its arguments are read

    monkeypatch.setattr(backend_checks, "rotate", rotate, raising=False)
    plain = Kernel("qk_norm_rope", "a", "turbort.testing.backend_checks:rotate", ("bf16",))
    assert suite_of(GOOD, plain).run("backend/kernels").outcome is Outcome.PASS
    result = suite_of(GOOD, replace(plain, emits=("sums-64",))).run("backend/kernels")
    assert "unexpected keyword argument 'emit'" in result.message


def test_two_kernels_of_one_name_are_found():
    assert "2 kernels are named patchify/good" in suite_of(GOOD, GOOD).run("backend/kernels").message


@pytest.mark.parametrize("answer", [None, [3], Unavailable("gone", "plug it in")])
def test_a_probe_that_makes_no_sense_is_found(answer):
    suite = suite_of(GOOD)
    suite.backend.probe = lambda: answer
    assert suite.run("backend/probe").outcome is Outcome.FAIL


def test_a_raising_probe_is_found():
    def probe():
        raise OSError("no driver")

    suite = suite_of(GOOD)
    suite.backend.probe = probe
    assert "no driver" in suite.run("backend/probe").message


@pytest.mark.parametrize(("line", "outcome"), [("import torch", Outcome.FAIL), ("import json", Outcome.PASS)])
def test_plugins_import_lightly(tmp_path, monkeypatch, line, outcome):
    (tmp_path / "light_or_heavy.py").write_text(line + "\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    suite = suite_of(GOOD)
    monkeypatch.setattr(type(suite.backend), "__module__", "light_or_heavy")
    suite.registry.plugins.clear()
    assert suite.run("backend/light-import").outcome is outcome


def test_packing_must_be_repeatable(monkeypatch):
    monkeypatch.setattr(backend_checks, "random_pack", lambda weight: torch.rand(4), raising=False)
    kernel = Kernel("linear", "a", "turbort.ops:linear", ("bf16",), pack="turbort.testing.backend_checks:random_pack")
    assert suite_of(kernel).run("backend/packing").outcome is Outcome.FAIL


def test_a_backend_without_device_is_one_skip():
    with pytest.raises(UnavailableError):
        Suite("made", absent())
    test = conformance("made", absent())
    with pytest.raises(pytest.skip.Exception, match="no such chip"):
        test()


def absent():
    class Absent(Backend):
        name = "made"

        def probe(self):
            return Unavailable("no such chip", "buy one")

        def kernels(self):
            return ()

    module = types.ModuleType("made")
    module.turbort_backends = hookimpl(lambda: (Absent(),))
    return Registry(extra=[module])


def test_grouping_and_markdown():
    results = [
        Result("linear/a/w8a8/x", Outcome.PASS, nmse=1e-4, budget=4e-4),
        Result("linear/a/w8a8/y", Outcome.REJECTED, message="5 rows"),
        Result("backend/probe", Outcome.FAIL, "probe"),
    ]
    groups = grouped(results)
    assert [group.outcomes for group in groups] == ["✗ 1", "✓ 1  ∅ 1"]
    assert groups[0].bad
    assert "| linear | a | w8a8 | ✓ 1  ∅ 1 | 1.0e-04 | 4.0e-04 | x |" in markdown("made", results)
    assert counts(results) == {"pass": 1, "fail": 1, "rejected": 1}


def test_calling_an_op_through_the_suite_keeps_positional_arguments():
    """Models pass leading arguments by position, so a kernel may name them as it likes."""
    suite = suite_of(Kernel("patchify", "renamed", f"{__name__}:renamed", ("fp32",)))
    sys.modules.setdefault(__name__, types.ModuleType(__name__)).renamed = renamed
    assert suite.run("patchify/renamed/fp32/c16-9x16x16").outcome is Outcome.PASS


def renamed(latent, *, patch=(1, 2, 2)):
    return ops.patchify(latent, patch=patch)
