"""Twin kernels: a second, pre-bound kernel per site, its weights in place, so that taking over is an assignment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbort.bind import bound_function, find_kernel, pack_weight
from turbort.guard.groups import Group, Member
from turbort.kernel import Kernel
from turbort.op import Slot
from turbort.quant.qtensor import QTensor
from turbort.registry import Registry

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]


@dataclass
class Twin:
    """One site with both of its kernels; `weight` is what the second one multiplies by, once it is loaded."""

    slot: Slot
    member: Member
    kernel: Kernel
    first: Function
    second: Function
    weight: Any = None
    wrap: Wrap | None = None

    def set(self, promoted: bool) -> None:
        """Run the second kernel from the next call on, or the first again."""
        choice = self.member.then if promoted else self.member.now
        function = self._with_weight() if promoted and self.slot.op.weights else self.second if promoted else self.first
        self.slot.switch(self.wrap(function) if self.wrap else function, provider=choice.kernel, precision=choice.precision)

    def _with_weight(self) -> Function:
        second, weight = self.second, self.weight
        index = tuple(self.slot.op.signature.parameters).index(self.slot.op.weights[0])

        def call(*args: Any, **kwargs: Any) -> Any:
            return second(*args[:index], weight, *args[index + 1 :], **kwargs)

        return call


class Switchboard:
    """The groups of one model and which of them are promoted: what a compiled step needs to know.

    A group runs its second kernel when the monitor has promoted it or the strength level of the step holds it.
    """

    def __init__(
        self, groups: Sequence[Group], slots: Mapping[str, Slot], registry: Registry, device: torch.device, stage: str = "dit"
    ) -> None:
        self.groups = {group.name: group for group in groups}
        self.promoted: frozenset[str] = frozenset()
        self.level: frozenset[str] = frozenset()
        self.active: frozenset[str] = frozenset()
        self._device = device
        self._twins: dict[str, list[Twin]] = {}
        self._by_path: dict[str, Twin] = {}
        for group in groups:
            twins = [_twin(member, slots[member.now.path.removeprefix(f"{stage}/")], registry) for member in group.members]
            self._twins[group.name] = twins
            self._by_path |= {twin.member.now.path.partition("/")[2]: twin for twin in twins}

    @property
    def key(self) -> frozenset[str]:
        """Equal keys mean equal kernels at every site."""
        return self.active

    def take(self, name: str, value: Tensor | QTensor, shape: Sequence[int]) -> None:
        """The weight `name` of the model, in passing: packed for the second kernel of its site, if that has one."""
        owner, _, attribute = name.rpartition(".")
        twin = self._by_path.get(f"{owner}.op")
        if twin is None or attribute not in twin.slot.op.weights:
            return
        weight = pack_weight(value, twin.member.then, twin.kernel, shape=shape, device=self._device)
        twin.weight = weight.flatten(1) if isinstance(weight, Tensor) else weight

    def watch(self, group: Group, wrap: Wrap) -> None:
        """See the arguments of a group's first site, whichever kernel runs there."""
        twin = self._twins[group.name][0]
        twin.wrap = wrap
        twin.set(group.name in self.active)

    def set(self, promoted: frozenset[str]) -> None:
        """Promote exactly these groups, and what the level holds."""
        self.promoted = promoted
        self._run(promoted | self.level)

    def strengthen(self, level: frozenset[str]) -> None:
        """Take a strength level; what the monitor has promoted stays."""
        self.level = level
        self._run(self.promoted | level)

    def _run(self, active: frozenset[str]) -> None:
        for name in active ^ self.active:
            for twin in self._twins[name]:
                twin.set(name in active)
        self.active = active

    @contextmanager
    def everything_promoted(self) -> Iterator[None]:
        """All second kernels inside the block: one step in it compiles them and fills their caches."""
        before = self.active
        self._run(frozenset(self.groups))
        try:
            yield
        finally:
            self._run(before)


def _twin(member: Member, slot: Slot, registry: Registry) -> Twin:
    kernel = find_kernel(member.then, registry)
    return Twin(slot, member, kernel, slot.fn, bound_function(member.then, kernel, slot.op))
