"""Scales shared along time: which call sites quantise with one scale per place of the latent grid, and what that costs.

A token scheme rounds every token with a scale of its own, so the same place of successive frames is rounded differently. Shared,
the tokens of a place have one scale in all frames. The codes and scales keep the scheme's form, so kernels that read them need
not know; only who makes them does. No scale is known before all frames are read, so a producer that would quantise in the pass
that computes hands over plain values, and a kernel of the op `quantize_time` makes the codes. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING

from turbort.kernel import Call, Kernel, TensorSpec
from turbort.plan import Choice
from turbort.precision import PRECISIONS, SUMS
from turbort.roofline import WIDTHS
from turbort.target import FALLBACK_BACKEND
from turbort.units import format_bytes

if TYPE_CHECKING:
    from turbort.registry import Registry
    from turbort.target import Target

SCHEMES = ("int8-token", "fp8-token")
TEXT_ROLE = "cross.kv"
"""Keys and values of cross-attention are made of text, which has no time."""

Policy = Callable[[Call, str, str, Mapping[str, str]], None]
"""Policy(call, precision, what is taken instead, refusals): what the profile says of a fallback; may raise NoKernelError."""


@dataclass(frozen=True)
class Sharing:
    """What the profile asks for on a latent grid.

    Attributes:
        grid: (T, H, W) in tokens.
        asked: True for every site, or globs on the module paths of the linears that read the activation.
        compute: the precision of plain activations.
        policy: asked before the reference is taken for a device whose own backend cannot; see `Policy`.
    """

    grid: tuple[int, int, int]
    asked: bool | tuple[str, ...]
    compute: str
    registry: Registry
    target: Target
    policy: Policy

    def applied(self, sites: Sequence[Sequence[Call]], choices: Sequence[Choice]) -> list[Choice]:
        """The choices, with `time_scales` where an activation is quantised over tokens of the grid and a kernel can share."""
        by_path = {choice.path: choice for choice in choices}
        fed = {path for choice, calls in zip(choices, sites, strict=True) if choice.emit for path in calls[0].consumers}
        found = []
        for calls, choice in zip(sites, choices, strict=True):
            asked = self._quantised(calls, choice, choice.path in fed, by_path)
            found.append(choice if asked is None else self._shared(asked, choice))
        return found

    def _quantised(self, calls: Sequence[Call], choice: Choice, fed: bool, by_path: Mapping[str, Choice]) -> _Asked | None:
        """What a site quantises by tokens of the grid where sharing is asked for; None where there is nothing to share."""
        x = calls[0]["x"]
        if not isinstance(x, TensorSpec) or len(x.shape) != 3 or not choice.path.startswith("dit/"):
            return None
        if len(calls) != 1 or x.shape[1] != prod(self.grid) or choice.role == TEXT_ROLE:
            return None
        producer = choice.emit is not None
        scheme = choice.emit if producer else PRECISIONS[choice.precision].emit
        if scheme is None or scheme in SUMS or (not producer and (choice.op != "linear" or fed)):
            return None
        readers = calls[0].consumers if producer else (choice.path,)
        if not all(self._matches(path) for path in readers if path in by_path):
            return None
        return _Asked(calls[0], scheme, x, producer)

    def _matches(self, path: str) -> bool:
        if isinstance(self.asked, bool):
            return self.asked
        short = path.partition("/")[2]
        return any(fnmatchcase(short, glob) or fnmatchcase(path, glob) for glob in self.asked)

    def _shared(self, asked: _Asked, choice: Choice) -> Choice:
        if asked.scheme not in SCHEMES:
            return replace(choice, note=_joined(choice.note, f"{asked.scheme} has no scales per token to share along time"))
        frames = self.grid[0]
        call = Call("quantize_time", choice.path, choice.role, {"x": asked.x, "emit": asked.scheme, "frames": frames})
        refusals: dict[str, str] = {}
        found = self._kernel(call, refusals)
        passed = {**choice.passed_over, **refusals}
        if found is None:
            note = _joined(choice.note, "scales per token: nothing here shares them along time")
            return replace(choice, passed_over=passed, note=note)
        backend, kernel = found
        name = f"{backend}/{kernel.name}"
        fallback = backend != self.target.backend
        extra = f"scales shared over {frames} frames{f' by {name}' if fallback else ''}, {format_bytes(asked.extra)} more to move"
        note = _joined(choice.note, extra)
        return replace(choice, fallback=choice.fallback or fallback, passed_over=passed, note=note, time_scales=name)

    def _kernel(self, call: Call, refusals: dict[str, str]) -> tuple[str, Kernel] | None:
        """Backend and kernel for a call of `quantize_time`: the target's own, or the reference as the policy allows."""
        for backend in dict.fromkeys((self.target.backend, FALLBACK_BACKEND)):
            rows = self.registry.kernels(backend, call.op)
            if not rows:
                refusals[f"{backend}@time"] = f"{backend} has no kernel that shares scales along time"
            for kernel in rows:
                reason = kernel.refusal(call, self.compute, self.target.device)
                if reason is None and call["emit"] in kernel.emits:
                    if backend != self.target.backend:
                        self.policy(call, self.compute, f"{backend}/{kernel.name}", refusals)
                    return backend, kernel
                name = f"{backend}/{kernel.name}@time"
                refusals[name] = reason or f"shares scales of {', '.join(kernel.emits) or 'nothing'}, not of {call['emit']}"
        return None


@dataclass(frozen=True)
class _Asked:
    """An activation that is to be quantised: the call that has it, the scheme, its form, and whether its producer does it."""

    call: Call
    scheme: str
    x: TensorSpec
    producer: bool
    extra: int = field(init=False)
    """Bytes moved beyond what one scale a token costs: a linear's kernel quantises in two steps anyway and reads once more; a
    producer writes plain values, which are read twice."""

    def __post_init__(self) -> None:
        size = int(prod(self.x.shape) * WIDTHS.get(self.x.dtype, 2))
        object.__setattr__(self, "extra", size * (3 if self.producer else 1))


def _joined(*notes: str | None) -> str:
    return ", ".join(note for note in notes if note)
