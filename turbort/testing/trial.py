"""A trial: one case made concrete on the device, bound and packed as a session would, ready to be called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from turbort.backend import Backend
from turbort.kernel import Call
from turbort.op import OpSpec
from turbort.quant.schemes import quantize
from turbort.testing.case import Case, Variant
from turbort.testing.compare import CheckFailed
from turbort.testing.oracle import Inputs, Oracle, selectors
from turbort.testing.values import all_same_bits, mapped, snapshot


class Refused(Exception):
    """The kernel does not take this call, and says why."""


class Trial:
    """The kernel's function with its arguments on the device.

    Loading, packing and calling go through here so that whatever the kernel raises becomes a CheckFailed.
    """

    def __init__(self, case: Case, variant: Variant, oracle: Oracle, backend: Backend) -> None:
        self.case, self.variant, self.oracle, self.backend = case, variant, oracle, backend
        self.device = torch.device(case.device.torch_name)
        self.inputs = oracle.inputs(case, variant)
        self.ask(self.inputs.call(case.spec.name))
        emit = self.inputs.logical.get("emit")
        if emit is not None and emit not in case.kernel.emits:
            raise Refused(f"emits {', '.join(case.kernel.emits) or 'nothing'}, not {emit}")
        self._function = self._load()
        self.packed = {name: self.pack(self._logical_weight(name)) for name in case.spec.weights}

    def ask(self, call: Call) -> None:
        """Raise Refused when the kernel rejects `call`, CheckFailed when it does so without a sentence."""
        kernel, precision = self.case.kernel, self.case.precision
        dtype = str(self.variant.dtype).removeprefix("torch.")
        if dtype not in self.case.device.dtypes:
            raise Refused(f"{self.case.device.name} does not compute in {dtype}")
        try:
            reason: object = kernel.refusal(call, precision.name, self.case.device)
        except Exception as error:
            raise CheckFailed("refusal", f"rejects raised {_brief(error)}") from error
        if reason is None:
            return
        if not isinstance(reason, str) or len(reason.split()) < 2:
            raise CheckFailed(
                "refusal", f"rejects returned {reason!r}; a refusal is a sentence with the number that broke the rule"
            )
        raise Refused(reason)

    def _load(self) -> Callable[..., Any]:
        try:
            loaded = self.case.kernel.load()
        except Exception as error:
            raise CheckFailed("loads", f"importing {self.case.kernel.target} raised {_brief(error)}") from error
        return loaded.reference if isinstance(loaded, OpSpec) else loaded

    def _logical_weight(self, name: str) -> Any:
        weight = self.inputs.weights.get(name, self.inputs.logical[name])
        return mapped(weight, lambda t: t.to(self.device))

    def pack(self, weight: Any) -> Any:
        """The weight as the kernel wants it; the logical weight must stay what it was."""
        try:
            packer = self.case.kernel.load_pack()
            if packer is None:
                return weight
            before = snapshot(weight)
            with torch.no_grad():
                packed = packer(weight)
        except Exception as error:
            raise CheckFailed("packs", f"packing raised {_brief(error)}") from error
        if not all_same_bits(before, snapshot(weight)):
            raise CheckFailed("packs", "packing changed the logical weight")
        return packed

    def arguments(self, inputs: Inputs | None = None, change: Callable[[str, Tensor], Tensor] | None = None) -> dict[str, Any]:
        """Arguments on the device: `inputs` (default: the case's own) with packed weights; `change` remakes activations."""
        given = (inputs or self.inputs).logical
        placed: dict[str, Any] = {}
        for name, value in given.items():
            if name in self.packed:
                placed[name] = self.packed[name]
                continue
            moved = mapped(value, lambda t: t.to(self.device))
            placed[name] = mapped(moved, lambda t, name=name: change(name, t)) if change else moved  # type: ignore[misc]
        return placed

    def quantised_tokens(self) -> dict[str, Any]:
        """Arguments whose `x` comes quantised from the op before, as the planner arranges it."""
        emit = str(self.case.precision.emit)
        placed = self.arguments()
        placed["x"] = mapped(quantize(self.inputs.logical["x"], emit), lambda t: t.to(self.device))
        return placed

    def call(self, arguments: Mapping[str, Any], emit: str | None = None, check: str = "runs") -> Any:
        """Call the kernel as a model does: leading arguments by position, the rest by name."""
        bound = self.case.spec.signature.bind(**arguments, **selectors(self.case, emit))
        try:
            with torch.no_grad():
                output = self._function(*bound.args, **bound.kwargs)
            self.backend.synchronize(self.case.device)
        except Exception as error:
            raise CheckFailed(check, f"an accepted call raised {_brief(error)}") from error
        return output


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
