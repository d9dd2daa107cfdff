"""The conformance suite of one backend: list its cases, run them, keep the ledger honest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cached_property

from turbort.backend import Backend, Device
from turbort.errors import InputError, TurbortError
from turbort.registry import Registry
from turbort.testing.backend_checks import BACKEND_CHECKS
from turbort.testing.case import Case, cases
from turbort.testing.checks import check_case
from turbort.testing.compare import CheckFailed, Verdict
from turbort.testing.ledger import Ledger, Waiver
from turbort.testing.oracle import Oracle
from turbort.testing.result import Outcome, Result
from turbort.testing.trial import Refused


class Suite:
    """Every case of a backend on one device, by id.

    `op`, `precision` and `sample` are globs; with any of them only matching op cases run, and neither the
    backend's own checks nor the ledger's completeness are judged. Raises UnavailableError when the backend has
    no device here, LedgerError for a ledger line without a reason.
    """

    def __init__(
        self,
        backend: str,
        registry: Registry | None = None,
        *,
        device: int = 0,
        op: str = "*",
        precision: str = "*",
        sample: str = "*",
        large: bool = False,
    ) -> None:
        self.registry = registry or Registry()
        self.name = backend
        self.backend: Backend = self.registry.backend(backend)
        self.device = _pick(self.registry.devices(backend), device, backend)
        self.ledger = Ledger.of(self.backend.unsupported, self.backend.known_issues, self.backend.quarantine)
        self.complete = (op, precision, sample) == ("*", "*", "*")
        self._filter = {"op": op, "precision": precision, "sample": sample}
        self._large = large
        self._oracle = Oracle()

    @cached_property
    def cases(self) -> dict[str, Case]:
        """Op cases by id, in running order."""
        return {case.id: case for case in self._cases(**self._filter, large=self._large)}

    def _cases(self, *, op: str = "*", precision: str = "*", sample: str = "*", large: bool = True) -> Iterator[Case]:
        try:
            kernels, precisions = self.registry.kernels(self.name), self.registry.precisions
        except Exception as error:
            fix = "kernels() lists rows and needs no device; import vendor packages in the kernels' own modules"
            raise TurbortError(f"kernels() of backend {self.name} raised {type(error).__name__}: {error}", fix=fix) from error
        chosen = {"op": op, "precision": precision, "sample": sample}
        return cases(kernels, self.registry.ops, precisions, self.device, **chosen, large=large)

    @property
    def backend_ids(self) -> list[str]:
        """Ids of the checks on the backend itself."""
        return [f"backend/{name}" for name in BACKEND_CHECKS] if self.complete else []

    @property
    def ids(self) -> list[str]:
        """Every id that `run` accepts: the backend's checks, the op cases, and the ledger's check."""
        return [*self.backend_ids, *self.cases, *(["ledger"] if self.complete else [])]

    def run(self, case_id: str) -> Result:
        """The result of one id."""
        started = time.perf_counter()
        if case_id == "ledger":
            return self._check_ledger()
        waiver = self.ledger.find(case_id)
        if waiver and waiver.kind != "known_issues":
            outcome = Outcome.QUARANTINED if waiver.kind == "quarantine" else Outcome.UNSUPPORTED
            return Result(case_id, outcome, message=waiver.reason)
        if case_id.startswith("backend/"):
            check = BACKEND_CHECKS[case_id.removeprefix("backend/")]
            return _judged(case_id, lambda: check(self), waiver, started)
        case = self.cases[case_id]
        return _judged(case_id, lambda: check_case(case, self._oracle, self.backend), waiver, started)

    def __iter__(self) -> Iterator[Result]:
        """Run everything; what matches no case at all is the caller's mistake."""
        if not self.cases:
            wanted = ", ".join(f"--{name} {glob}" for name, glob in self._filter.items() if glob != "*")
            raise InputError(
                f"backend {self.name} has no case for {wanted or 'any op'}",
                fix=f"`turbort check {self.name} --list` shows every case",
            )
        for case_id in self.ids:
            yield self.run(case_id)

    def _check_ledger(self) -> Result:
        known = [case.id for case in self._cases()] + self.backend_ids
        stale = self.ledger.unmatched(known)
        if stale:
            lines = "; ".join(f"{waiver.kind} {waiver.pattern!r}" for waiver in stale)
            return Result("ledger", Outcome.FAIL, "ledger", message=f"matches no case: {lines}")
        return Result("ledger", Outcome.PASS)


def _pick(devices: list[Device], index: int, backend: str) -> Device:
    if index >= len(devices):
        raise InputError(
            f"backend {backend} has {len(devices)} device(s), not {index + 1}", fix=f"choose --device 0 to {len(devices) - 1}"
        )
    return devices[index]


def _judged(case_id: str, check: Callable[[], Verdict | None], waiver: Waiver | None, started: float) -> Result:
    """Run a check and turn what it raises into an outcome, with a known issue's expectation applied."""
    try:
        verdict = check()
    except Refused as refusal:
        return Result(case_id, Outcome.REJECTED, message=str(refusal), seconds=time.perf_counter() - started)
    except CheckFailed as failure:
        outcome, message = (Outcome.KNOWN, waiver.reason) if waiver else (Outcome.FAIL, str(failure))
        return Result(case_id, outcome, failure.check, failure.also, message, seconds=time.perf_counter() - started)
    seconds = time.perf_counter() - started
    nmse, budget = (verdict.nmse, verdict.budget) if verdict else (None, None)
    if waiver:
        message = f"passes now; remove known_issues {waiver.pattern!r} ({waiver.reason})"
        return Result(case_id, Outcome.FIXED, "ledger", (), message, nmse, budget, seconds)
    return Result(case_id, Outcome.PASS, nmse=nmse, budget=budget, seconds=seconds)
