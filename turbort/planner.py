"""The planner: model sites + profile + device -> plan. It chooses once, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from turbort.errors import InputError, NoKernelError
from turbort.handover import wanted_schemes
from turbort.kernel import Call, Kernel
from turbort.layouts import ROW, conversions, settle
from turbort.plan import Choice, Plan
from turbort.policy import Evidence, judge
from turbort.precision import PRECISIONS
from turbort.profile_fields import MAX_BATCH
from turbort.stand_in import steps_up
from turbort.target import FALLBACK_BACKEND, Target, find_target
from turbort.time_scales import Sharing

if TYPE_CHECKING:
    from turbort.models.spec import ModelSpec
    from turbort.profile import Profile
    from turbort.registry import Registry

__all__ = ["DTYPES", "LINEAR_ROLES", "Planner", "Target", "find_target", "make_plan", "recorded"]

log = logging.getLogger("turbort")

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
LINEAR_ROLES = ("self.", "cross.", "ffn.")


class Planner:
    """Chooses precision and kernel for recorded call sites under one profile on one device."""

    def __init__(self, profile: Profile, registry: Registry, target: Target) -> None:
        self.profile = profile
        self.registry = registry
        self.target = target
        self.assigned: Mapping[str, tuple[str, str | None]] = {}
        """Precisions, each with a note, that calibration gives to sites; what the profile overrides stays."""
        self.grid: tuple[int, int, int] | None = None
        """(T, H, W) of the latent grid in tokens, for scales shared along time; None plans a scale per token."""

    def wanted(self, call: Call) -> tuple[str, str | None]:
        """The precision the profile asks for at a site, and a note when a rule rather than its word decided."""
        for pattern, precision in self.profile.precision.overrides.items():
            if fnmatchcase(call.path.partition("/")[2], pattern) or fnmatchcase(call.path, pattern):
                return precision, f"override {pattern}"
        if call.path in self.assigned:
            return self.assigned[call.path]
        stage = call.path.partition("/")[0]
        if stage == "vae":
            return self.profile.precision.vae, None
        if call.op == "linear" and call.role.startswith(LINEAR_ROLES):
            return self.profile.precision.linear_name, None
        if call.role == "attn.self":
            return self.profile.precision.attention, None
        if call.role == "time":
            return "fp32", "time path in fp32"
        return self.profile.precision.compute, None

    def candidates(self, call: Call) -> tuple[str, ...]:
        """What calibration may choose from at a site: the compute dtype, and every precision down to the profile's least."""
        words = self.profile.precision
        if words.override(call.path) is not None or not call.path.startswith("dit/"):
            return ()
        if call.op == "linear" and call.role.startswith(LINEAR_ROLES):
            least = PRECISIONS[words.linear.min]
        elif call.role == "attn.self":
            least = PRECISIONS[words.attention]
        else:
            return ()
        rows = [row for row in PRECISIONS.values() if row.kind == least.kind != "float"]
        return (words.compute, *(row.name for row in rows if row.no_less_than(least)))

    def kernel(self, calls: Sequence[Call], precision: str) -> Kernel | None:
        """The kernel of the target's own backend that computes these calls at `precision`; None when none does."""
        return self._accepting(calls, self.target.backend, precision, {})

    def choose(self, calls: Sequence[Call]) -> Choice:
        """The choice for one site, given its distinct calls (a streaming VAE calls a site with several shapes)."""
        call = _fullest(calls)
        wanted, note = self.wanted(call)
        passed: dict[str, str] = {}
        names = (wanted, *steps_up(wanted, self.profile.precision.compute))
        candidates = [(self.target.backend, name) for name in names]
        if self.target.backend != FALLBACK_BACKEND:
            candidates.append((FALLBACK_BACKEND, wanted))
        for backend, precision in candidates:
            kernel = self._accepting(calls, backend, precision, passed)
            if kernel is not None:
                fallback = (backend, precision) != (self.target.backend, wanted)
                if fallback:
                    self._apply_policy(call, wanted, f"{backend}/{kernel.name} at {precision}", passed)
                return Choice(
                    path=call.path,
                    op=call.op,
                    role=call.role,
                    precision=precision,
                    kernel=f"{backend}/{kernel.name}",
                    shapes=tuple(call.shapes()),
                    fallback=fallback,
                    passed_over=passed,
                    note=f"wanted {wanted}" if precision != wanted else note,
                )
        raise self._no_kernel(call, wanted, passed)

    def at(self, calls: Sequence[Call], precision: str) -> Choice | None:
        """The choice for one site at exactly this precision on the target's own backend or the reference; None if none can."""
        call = _fullest(calls)
        for backend in dict.fromkeys((self.target.backend, FALLBACK_BACKEND)):
            kernel = self._accepting(calls, backend, precision, {})
            if kernel is not None:
                name = f"{backend}/{kernel.name}"
                return Choice(call.path, call.op, call.role, precision, name, shapes=tuple(call.shapes()))
        return None

    def _accepting(self, calls: Sequence[Call], backend: str, precision: str, passed: dict[str, str]) -> Kernel | None:
        device = self.target.device
        if precision in DTYPES and DTYPES[precision] not in device.dtypes:
            passed[f"{backend}@{precision}"] = f"{device.name} does not compute in {DTYPES[precision]}"
            return None
        rows = self.registry.kernels(backend, calls[0].op)
        for kernel in rows:
            reason = next(filter(None, (kernel.refusal(call, precision, device) for call in calls)), None)
            if reason is None:
                return kernel
            if precision in kernel.precisions or len(rows) == 1:
                passed[f"{backend}/{kernel.name}@{precision}"] = reason
        return None

    def _apply_policy(self, call: Call, wanted: str, taken: str, passed: Mapping[str, str]) -> None:
        if self.profile.fallback == "error":
            raise self._no_kernel(call, wanted, passed)
        if self.profile.fallback == "warn":
            log.info("%s: no kernel for %s at %s, taking %s", call.path, call.op, wanted, taken)

    def _no_kernel(self, call: Call, wanted: str, passed: Mapping[str, str]) -> NoKernelError:
        return NoKernelError(
            f"no kernel for {call.op} at {wanted} on {self.target.device.name} ({call.path})",
            tried=[f"shapes: {', '.join(call.shapes())}", *(f"{name}: {reason}" for name, reason in passed.items())],
            fix="choose another precision in the profile, or set `fallback: warn`",
        )

    def fuse_quantisation(self, sites: Sequence[Sequence[Call]], choices: list[Choice]) -> list[Choice]:
        """Let a producer hand over quantised values, or values with sums, where every reader wants the same scheme.

        Without this q, k and v would each quantise the same activation.
        """
        wanted = wanted_schemes(sites, choices, self._kernel)
        fused = []
        for calls, choice in zip(sites, choices, strict=True):
            schemes = {wanted.get((choice.path, reader)) for reader in calls[0].consumers}
            scheme = schemes.pop() if len(schemes) == 1 else None
            fused.append(replace(choice, emit=scheme) if scheme and scheme in self.emits(choice) else choice)
        return fused

    def emits(self, choice: Choice) -> tuple[str, ...]:
        """The schemes in which the chosen kernel of a site can hand over its output."""
        return self._kernel(choice).emits

    def capturable(self, choices: Sequence[Choice]) -> bool:
        """Whether every kernel of the transformer allows a backend to capture the step."""
        return all(self._kernel(choice).capturable for choice in choices if choice.path.startswith("dit/"))

    def _kernel(self, choice: Choice) -> Kernel:
        backend, _, name = choice.kernel.partition("/")
        return next(kernel for kernel in self.registry.kernels(backend, choice.op) if kernel.name == name)

    def plan(self, sites: Sequence[Sequence[Call]]) -> tuple[Choice, ...]:
        """Choices for all sites, in call order."""
        choices = self.fuse_quantisation(sites, [self.choose(calls) for calls in sites])
        asked = self.profile.precision.shares_scales
        if asked and self.grid is not None:
            compute = self.profile.precision.compute
            choices = Sharing(self.grid, asked, compute, self.registry, self.target, self._apply_policy).applied(sites, choices)
        return tuple(self.arrange(sites, choices))

    def arrange(self, sites: Sequence[Sequence[Call]], choices: Sequence[Choice]) -> list[Choice]:
        """Take, among kernels that are as good, those that need the fewest conversions of layout, and note what remains."""
        numbers = {choice.path: number for number, choice in enumerate(choices)}
        # A streaming decoder reads what it made before; only what comes from earlier sites counts.
        sources = [
            sorted(numbers[path] for path in calls[0].sources if numbers.get(path, number) < number)
            for number, calls in enumerate(sites)
        ]
        equal = [self._as_good(calls, choice) for calls, choice in zip(sites, choices, strict=True)]
        picks, _ = settle([[kernel.layout for kernel in row] for row in equal], sources)
        kernels = [row[pick] for row, pick in zip(equal, picks, strict=True)]
        found = []
        for choice, kernel, converts in zip(choices, kernels, conversions([k.layout for k in kernels], sources), strict=True):
            backend = choice.kernel.partition("/")[0]
            layout = None if kernel.layout == ROW else kernel.layout
            found.append(replace(choice, kernel=f"{backend}/{kernel.name}", layout=layout, converts=tuple(converts)))
        return found

    def _as_good(self, calls: Sequence[Call], choice: Choice) -> list[Kernel]:
        """The chosen kernel, then others of its priority that could stand in its place."""
        chosen = self._kernel(choice)
        others = [
            kernel
            for kernel in self.registry.kernels(choice.kernel.partition("/")[0], choice.op)
            if kernel is not chosen
            and kernel.priority == chosen.priority
            and kernel.layout != chosen.layout
            and (choice.emit is None or choice.emit in kernel.emits)
            and not any(kernel.refusal(call, choice.precision, self.target.device) for call in calls)
        ]
        return [chosen, *others]


def _fullest(calls: Sequence[Call]) -> Call:
    """The call that stands for its site in a plan: the one with the longest description, so with the most arguments."""
    return max(calls, key=lambda call: sum(len(shape) for shape in call.shapes()))


def recorded(
    spec: ModelSpec,
    profile: Profile,
    *,
    size: tuple[int, int],
    frames: int,
    batch: int = 1,
    image: bool = False,
) -> list[list[Call]]:
    """The call sites of a model at one size under a profile, each with its distinct calls."""
    from turbort.models.sites import record_model

    if not 1 <= batch <= MAX_BATCH:
        raise InputError(f"batch {batch} is not from 1 to {MAX_BATCH}", fix=f"use --batch {min(max(batch, 1), MAX_BATCH)}")
    return record_model(
        spec,
        attention=profile.attention,
        dtype=DTYPES[profile.precision.compute],
        vae_dtype=DTYPES[profile.precision.vae],
        width=size[0],
        height=size[1],
        frames=frames,
        batch=batch,
        image=image,
    )


def make_plan(
    spec: ModelSpec,
    profile: Profile,
    registry: Registry,
    *,
    backend: str | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    batch: int = 1,
    target: Target | None = None,
    evidence: Evidence | None = None,
    image: bool = False,
) -> Plan:
    """Record `spec` on meta at this size (width, height in pixels) and choose under `profile`.

    `image` says that a picture is given to a model that can do without one.

    `backend` replaces the profile's own (`null` plans any profile on any machine; `cpu` rehearses it on the
    reference backend). With `evidence` precisions are chosen as `precision.policy` says. Raises UnavailableError when the
    backend has no device here, NoKernelError when nothing computes a call, InputError when no choice meets the budget.
    """
    width, height = size or (spec.defaults.width, spec.defaults.height)
    count = frames or spec.defaults.frames
    where = target or find_target(profile, registry, backend)
    planner = Planner(profile, registry, where)
    sites = recorded(spec, profile, size=(width, height), frames=count, batch=batch, image=image)
    judged = judge(planner, sites, evidence, spec.name)
    planner.assigned = judged.assigned
    planner.grid = spec.token_grid(width, height, count)
    header = {
        "model": spec.name,
        "profile": profile.name,
        "backend": where.backend,
        "device": where.device.name,
        "arch": where.device.arch,
        "rehearsal": where.rehearsal,
        "size": [width, height],
        "frames": count,
        "batch": batch,
        "attention": profile.attention.model_dump(mode="json"),
        "compute": profile.precision.compute,
        "fallback": profile.fallback,
        **judged.header,
    }
    header |= {"image": True} if image and spec.task != "i2v" else {}
    choices = planner.plan(sites)
    if profile.graph.capture is False or (profile.graph.capture == "auto" and not planner.capturable(choices)):
        header["graph"] = "eager"
    elif registry.backend(where.backend).captures:
        header["graph"] = "captured"
    plan = Plan(header, choices)
    notes = registry.backend(where.backend).review(spec, plan, where.device)
    return plan.with_header(notes=list(notes)) if notes else plan
