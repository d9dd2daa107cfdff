"""What every accepted case must satisfy, one function per rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from turbort.backend import Backend
from turbort.precision import SUMS
from turbort.quant.qtensor import QTensor
from turbort.quant.sums import block_sums, sums_rows
from turbort.testing.case import Case
from turbort.testing.compare import CheckFailed, Expected, Verdict, as_float64, check_form, judge
from turbort.testing.guard import Guards, Poison, swapped, wide_rows
from turbort.testing.oracle import Oracle
from turbort.testing.probes import PROBES
from turbort.testing.trial import Refused, Trial
from turbort.testing.values import all_same_bits, leaves, mapped, same_bits, snapshot


def check_case(case: Case, oracle: Oracle, backend: Backend) -> Verdict | None:
    """Run every check on one case; returns the error of its first variant against the budget.

    None on a device without values (`meta`), where only the form of the results is checked.

    Raises Refused when the kernel takes no variant of the call, CheckFailed at the first broken rule.
    """
    verdict: Verdict | None = None
    refusals: list[Refused] = []
    form_only = case.device.torch_name == "meta"
    for variant in case.variants():
        try:
            trial = Trial(case, variant, oracle, backend)
        except Refused as refusal:
            refusals.append(refusal)
            continue
        if form_only:
            check_form_only(trial)
        elif verdict is None:
            verdict = check_all(trial)
        else:
            check_values(trial, trial.call(trial.arguments()))
    if len(refusals) == len(case.variants()):
        raise refusals[0]
    return verdict


def check_all(trial: Trial) -> Verdict:
    """Every rule on its own, so that one broken rule does not hide the others; raises the first, naming the rest."""
    verdicts: list[Verdict] = []
    failures: list[CheckFailed] = []
    for check in (*CHECKS, *PROBES.get(trial.case.spec.name, ())):
        try:
            verdict = check(trial)
        except CheckFailed as failure:
            failures.append(failure)
        else:
            verdicts += [verdict] if verdict else []
    if failures:
        first = failures[0]
        first.also = tuple(dict.fromkeys(other.check for other in failures[1:] if other.check != first.check))
        raise first
    return verdicts[0]


def check_quantised_tokens(trial: Trial) -> None:
    """`x` may come quantised by the op before, in the scheme of the precision: the planner arranges it so."""
    if trial.inputs.weights and trial.case.precision.emit:
        check_values(trial, trial.call(trial.quantised_tokens(), check="quantised-x"), check="quantised-x")


def check_emits(trial: Trial) -> None:
    """The output in every scheme the kernel offers, judged after dequantising; sums that come along are exactly those of it."""
    if trial.case.spec.emits and "emit" not in trial.inputs.logical:
        for scheme in trial.case.kernel.emits:
            output = trial.call(trial.arguments(), scheme, check="emit")
            check_values(trial, output, scheme, check="emit")
            for name, leaf in leaves(output) if scheme in SUMS else ():
                if not isinstance(leaf, QTensor) or leaf.scheme != scheme:
                    raise CheckFailed("emit", f"{name} brings no {scheme} along")
                if not torch.equal(leaf.scales, block_sums(leaf.values.to(torch.float32), sums_rows(scheme))[0]):
                    raise CheckFailed("emit", f"{scheme} of {name} are not the sums in the reference's order")


def check_shared_scales(trial: Trial) -> None:
    """Scales shared along time are the same in every frame: the error budget alone would let finer ones pass."""
    frames = trial.inputs.logical.get("frames")
    if frames is None:
        return
    for name, leaf in leaves(trial.call(trial.arguments(), check="shared")):
        if isinstance(leaf, QTensor):
            by_frame = leaf.scales.view(leaf.scales.shape[0], frames, -1)
            if not same_bits(by_frame, by_frame[:, :1].expand_as(by_frame)):
                raise CheckFailed("shared", f"scales of {name} differ between the {frames} frames of a place")


def check_capture(trial: Trial) -> None:
    """On a device with graphs, a captured call computes what the plain call does, also on inputs it was not captured with."""
    if "graph" not in trial.case.device.features or not trial.case.kernel.capturable:
        return
    fixed = trial.arguments()
    names = [name for name, value in fixed.items() if isinstance(value, Tensor) and name not in trial.packed]

    def step(*values: Tensor) -> Any:
        return trial.call({**fixed, **dict(zip(names, values, strict=True))}, check="capture")

    captured = trial.backend.compile_step(step, trial.case.device)
    for seed in (0, 1):
        given = trial.arguments(trial.oracle.inputs(trial.case, trial.variant, seed))
        values = [given[name] for name in names]
        plain = leaves(step(*values))
        replayed = _leaves(captured(*values), len(plain))
        trial.backend.synchronize(trial.case.device)
        for (name, want), (_, got) in zip(plain, replayed, strict=True):
            judge(got, Expected.of(f"captured {name}", want, as_float64(want)), trial.case.precision, "capture")


def check_form_only(trial: Trial) -> None:
    """On a device without values there is only the form of the result to check."""
    arguments = mapped(trial.inputs.logical, lambda t: t.to("meta"))
    wanted = leaves(trial.oracle.reference_on(trial.case, arguments, None))
    for (_, got), (name, want) in zip(_leaves(trial.call(trial.arguments()), len(wanted)), wanted, strict=True):
        check_form(name, got, want)


def check_values(trial: Trial, output: Any, emit: str | None = None, check: str = "budget") -> Verdict:
    """Form, finiteness and error of every output; the verdict of the worst one."""
    expected = trial.oracle.expect(trial.case, trial.variant, emit)
    results = _leaves(output, len(expected))
    verdicts = [judge(leaf, want, trial.case.precision, check) for (_, leaf), want in zip(results, expected, strict=True)]
    return max(verdicts, key=lambda verdict: verdict.nmse / verdict.budget)


def _leaves(output: Any, count: int) -> list[Any]:
    try:
        found = leaves(output)
    except TypeError as error:
        raise CheckFailed("form", str(error)) from error
    if len(found) != count:
        raise CheckFailed("form", f"{len(found)} outputs, the reference returns {count}")
    return found


def check_memory(trial: Trial) -> Verdict:
    """Every output element is written, nothing else is, and inputs keep their bits; then form and error of the result.

    Inputs lie between guards, and memory that the kernel allocates through torch starts as NaN between guards.
    """
    guards, poison = Guards(), Poison()
    arguments = trial.arguments(change=guards.copy)
    before = snapshot(arguments)
    with poison:
        output = trial.call(arguments)
    if not all_same_bits(before, snapshot(arguments)):
        raise CheckFailed("inputs", "the call changed one of its inputs")
    damaged = guards.damage() + poison.guards.damage()
    if damaged:
        raise CheckFailed("bounds", f"the call wrote outside {damaged[0]}")
    return check_values(trial, output)


def check_determinism(trial: Trial) -> None:
    """Two calls on the same inputs give the same bits."""
    arguments = trial.arguments()
    first, second = (snapshot(trial.call(arguments)) for _ in range(2))
    if not all_same_bits(first, second):
        raise CheckFailed("determinism", "two calls on the same inputs differ in their bits")


def check_other_inputs(trial: Trial) -> None:
    """A call on other inputs gives another result and leaves the earlier one alone."""
    first = trial.call(trial.arguments())
    kept = snapshot(first)
    other = trial.call(trial.arguments(trial.oracle.inputs(trial.case, trial.variant, seed=1)))
    if not all_same_bits(kept, snapshot(first)):
        raise CheckFailed("fresh", "a later call overwrote the result of an earlier one")
    if all_same_bits(kept, snapshot(other)) and _differ(trial):
        raise CheckFailed("stale", "a call on other inputs returned the result of the call before")


def _differ(trial: Trial) -> bool:
    """Whether the reference itself tells the two sets of inputs apart (a sample of zeros does not)."""
    mine, other = (trial.oracle.inputs(trial.case, trial.variant, seed=seed) for seed in (0, 1))
    results = [snapshot(trial.oracle.reference(trial.case, inputs)) for inputs in (mine, other)]
    return not all_same_bits(*results)


def check_strides(trial: Trial) -> None:
    """Activations may be slices of wider tensors at odd offsets, or have their last two axes swapped in memory."""
    own = (_as_sampled,) if trial.case.sample.tags & {"strided", "offset"} else ()
    for change in (wide_rows, swapped, *own):
        arguments = trial.arguments(change=lambda _, tensor, change=change: change(tensor))  # type: ignore[misc]
        before = snapshot(arguments)
        output = trial.call(arguments, check="strides")
        if not all_same_bits(before, snapshot(arguments)):
            raise CheckFailed("strides", "the call changed one of its inputs")
        check_values(trial, output, check="strides")


def _as_sampled(tensor: Tensor) -> Tensor:
    return tensor


CHECKS: tuple[Callable[[Trial], Verdict | None], ...] = (
    check_memory,
    check_determinism,
    check_other_inputs,
    check_strides,
    check_quantised_tokens,
    check_emits,
    check_shared_scales,
    check_capture,
)
