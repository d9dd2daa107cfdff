"""The outlier monitor of one transformer: after each step it decides which sites run their second kernel from now on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from turbort.guard.groups import Group
from turbort.guard.policy import Policy, merged
from turbort.guard.probe import Probes
from turbort.guard.strength import Strengths
from turbort.guard.switch import Switchboard
from turbort.op import Slot, slots

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("turbort")
Mode = Literal["off", "warn", "promote", "replay"]
CALM_STEPS = 3
"""Steps below half the threshold after which a site goes back."""


@dataclass(frozen=True)
class Watch:
    """What the monitors of a run do, and with which groups.

    `strengths` are the plan's levels, where one of them is chosen per step or clip; `note` says why less is done than the profile
    asks for.
    """

    mode: Mode = "off"
    threshold: float = 0.05
    groups: tuple[Group, ...] = ()
    policy: Policy | None = None
    note: str = ""
    strengths: Strengths | None = None

    @property
    def adapts(self) -> bool:
        """Whether levels are chosen."""
        return self.strengths is not None and self.strengths.works

    @property
    def switches(self) -> bool:
        """Whether second kernels are there to change to."""
        return bool(self.groups) and (self.adapts or self.mode in ("promote", "replay"))

    @property
    def weight_bytes(self) -> int:
        """What the second kernels' weights take on the device, per transformer."""
        return sum(group.weight_bytes for group in self.groups) if self.switches else 0


class Monitor:
    """Watches and switches one transformer (`role`); one object for the life of its weights, and the `Switches` of its step.

    Protocol, per model call: `before()`, the forward, and `after()`, which says whether that forward should be made again
    because sites were promoted on what it showed. `begin()` starts a new video with nothing promoted.
    """

    def __init__(
        self, role: str, watch: Watch, board: Switchboard | None, probes: Probes | None, sites: Mapping[str, Slot]
    ) -> None:
        self.role, self.watch = role, watch
        self.board, self.probes = board, probes
        self.step = 0
        self.events: list[dict[str, Any]] = []
        self.recorded: tuple[frozenset[str], ...] = ()
        self.clips: list[tuple[frozenset[str], ...]] = []
        self._shares: dict[str, float] = {}
        self._calm: dict[str, int] = {}
        self._warned: set[str] = set()
        self._steps: list[frozenset[str]] = []
        self._begun = False
        self._close: frozenset[str] = frozenset()
        self.in_turns = False
        """Whether quiet sites are sampled in turns: a step that is replayed has every copy in it or none."""
        if probes is not None:
            for group in watch.groups:
                self._attach(group, probes, sites[group.probe.partition("/")[2]])

    def _attach(self, group: Group, probes: Probes, site: Slot) -> None:
        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                probes.take(group, args)
                return function(*args, **kwargs)

            return call

        if self.board is not None:
            self.board.watch(group, wrap)
        else:
            site.fn = wrap(site.fn)

    @property
    def key(self) -> Hashable:
        """What a compiled step holds: the kernels in place, and whether samples are taken."""
        return (self.board.active if self.board is not None else frozenset(), self.probes is not None and self.probes.listens)

    def everything_promoted(self) -> AbstractContextManager[None]:
        """All second kernels inside the block, where there are any."""
        return nullcontext() if self.board is None else self.board.everything_promoted()

    def begin(self) -> None:
        """A new video: a job's frames must not depend on what was made before it."""
        self._keep()
        self._close = frozenset()
        self.step = 0
        self._calm.clear()
        if self.board is not None:
            self.board.set(frozenset())

    def _keep(self) -> None:
        if self._begun:
            self.clips.append(tuple(self._steps))
        self._begun = True
        self.recorded = merged(self.recorded, self._steps) if self.recorded else tuple(self._steps)
        self._steps = []

    def before(self, level: frozenset[str] = frozenset()) -> None:
        """Put the kernels of this step in place: those of its strength level, and what has been promoted."""
        self.step += 1
        if self.probes is not None:
            near = self._close | (self.board.promoted if self.board is not None else frozenset())
            if self.in_turns:
                self.probes.turn(self.step, near)
            else:
                self.probes.alternate(self.step, near)
        if self.board is None:
            return
        if self.watch.policy is not None:
            self.board.set(self.watch.policy.at(self.role, self.step, len(self.clips)))
        elif level != self.board.level:
            self.board.strengthen(level)

    def after(self) -> bool:
        """Judge what the forward showed; True when sites were promoted and it should be made again with them."""
        if self.probes is None or not self.probes.listens:
            self._steps += [self.board.active] if self.board is not None else []
            return False
        shares = dict(zip((group.name for group in self.watch.groups), self.probes.shares(), strict=True))
        self._close = frozenset(name for name, share in shares.items() if share >= self.watch.threshold / 2)
        self._shares = {name: max(share, self._shares.get(name, 0.0)) for name, share in shares.items()}
        if self.watch.mode != "promote" or self.board is None:
            self._warn(shares)
            self._steps += [self.board.active] if self.board is not None else []
            return False
        up = [name for name, share in shares.items() if share > self.watch.threshold and name not in self.board.promoted]
        down = [name for name in self.board.promoted if self._settled(name, shares[name])]
        before, used = self.board.active, self.board.promoted | frozenset(up)
        # What the level had promoted anyway has run at its second kernel, and only stays there when the level falls.
        again = not frozenset(up) <= before
        self._steps.append(before | used)
        self.board.set(used - frozenset(down))
        for action, names in (("promote", up), ("demote", down)):
            for name in names:
                self._note(action, name, shares[name], repeated=again and action == "promote")
        return again

    def instead(self, ran: frozenset[str]) -> None:
        """The step that was judged last is replaced by one in which these groups ran their second kernel."""
        self._steps[-1] = ran

    def _settled(self, name: str, share: float) -> bool:
        """Whether a promoted site has been calm for long enough; half the threshold keeps it from going to and fro."""
        self._calm[name] = self._calm.get(name, 0) + 1 if share < self.watch.threshold / 2 else 0
        if self._calm[name] < CALM_STEPS:
            return False
        self._calm[name] = 0
        return True

    def _warn(self, shares: dict[str, float]) -> None:
        for name, share in shares.items():
            if share > self.watch.threshold and name not in self._warned:
                self._warned.add(name)
                self._note("warn", name, share)

    def _note(self, action: str, name: str, share: float, *, repeated: bool = False) -> None:
        group = next(group for group in self.watch.groups if group.name == name)
        site = group.members[0]
        self.events.append(
            {
                "role": self.role,
                "step": self.step,
                "action": action,
                "site": name,
                "share": round(share, 4),
                "from": site.now.precision if action != "demote" else site.then.precision,
                "to": site.then.precision if action == "promote" else site.now.precision,
                "sites": [member.now.path for member in group.members],
                "repeated": repeated,
            }
        )
        log.info("step %d: %s %s, %.1f %% outliers", self.step, action, name, 100 * share)

    def continued(self, earlier: Monitor | None) -> None:
        """Go on where the monitor of the same transformer was before its weights left the device."""
        if earlier is not None:
            self.step, self.events, self.recorded = earlier.step, earlier.events, earlier.recorded
            self._shares, self._steps, self._warned = earlier._shares, earlier._steps, earlier._warned
            self.clips, self._begun = earlier.clips, earlier._begun

    @property
    def steps(self) -> tuple[frozenset[str], ...]:
        """What was promoted at each step, over all videos so far."""
        return merged(self.recorded, self._steps)

    def as_data(self) -> dict[str, Any]:
        """What was seen: the largest share per site, and the events."""
        return {
            "role": self.role,
            "events": list(self.events),
            "shares": {name: round(share, 4) for name, share in self._shares.items()},
        }


def make_monitor(role: str, watch: Watch, model: nn.Module, board: Switchboard | None, device: torch.device) -> Monitor:
    """The monitor of a bound transformer; one that only warns has no second kernels, one that replays no probes."""
    probes = None if watch.mode in ("off", "replay") else Probes(watch.groups, device)
    return Monitor(role, watch, board, probes, slots(model))


def report(watch: Watch, monitors: Sequence[Monitor]) -> dict[str, Any]:
    """The monitor's part of a run report."""
    return {
        "mode": watch.mode,
        "outlier_share": watch.threshold,
        "groups": len(watch.groups),
        "twin_weight_bytes": watch.weight_bytes,
        "note": watch.note,
        "transformers": [monitor.as_data() for monitor in monitors],
    }


def recorded(model: str, plan: str, monitors: Sequence[Monitor]) -> Policy:
    """The policy that a monitored run amounts to; levels differ from clip to clip, so those are kept one by one."""
    each = {monitor.role: (*monitor.clips, tuple(monitor._steps)) for monitor in monitors if monitor.watch.adapts}
    return Policy(model, plan, {monitor.role: monitor.steps for monitor in monitors}, each)
