"""The transformers of a session: one, or two experts that take turns as the noise falls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from turbort.backend import Backend, Device
from turbort.bind import Binder, executed
from turbort.checkpoints import Checkpoint, open_checkpoint, stream
from turbort.checkpoints.dialect import Value
from turbort.checkpoints.lora import Lora, fuse
from turbort.guard.monitor import Monitor, Watch, make_monitor
from turbort.guard.profiler import OpProfile
from turbort.guard.switch import Switchboard
from turbort.job import Event, OnEvent
from turbort.memory import Residency
from turbort.models.config import ModelSpec
from turbort.models.sites import build_dit
from turbort.models.wan_dit import WanDit
from turbort.offload import Offload
from turbort.op import slots
from turbort.plan import Plan
from turbort.planner import DTYPES
from turbort.profile import Profile
from turbort.registry import Registry


@dataclass
class Expert:
    """A bound transformer with its weights in place, and its compiled step."""

    model: WanDit
    step: Callable[..., Tensor]
    monitor: Monitor


@dataclass(frozen=True)
class Setting:
    """What every expert is built with."""

    spec: ModelSpec
    profile: Profile
    plan: Plan
    registry: Registry
    backend: Backend
    device: Device
    residency: Residency
    watch: Watch = field(default_factory=Watch)
    ops: OpProfile | None = None


class Experts:
    """Opens, binds and swaps transformers by role (`dit`, or the names in `spec.experts`).

    With `residency.experts == "swap"` one is on the device at a time: `prefetch` reads the next one's weights into the
    host's memory while the current one still computes, and the swap then only copies them.
    """

    def __init__(self, setting: Setting, files: Mapping[str, Path], loras: Sequence[Lora] = ()) -> None:
        self.setting = setting
        self.roles = setting.spec.experts or ("dit",)
        self.digests: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []
        self.swaps = 0
        self.monitors: dict[str, Monitor] = {}
        self._ready: dict[str, Expert] = {}
        self._waiting: tuple[str, Thread, list[tuple[str, Value]], list[BaseException]] | None = None
        self._checkpoints = {role: self._open(role, files[role], loras) for role in self.roles}

    def _open(self, role: str, path: Path, loras: Sequence[Lora]) -> Checkpoint:
        mine = [lora for lora in loras if lora.expert in (None, role)]
        second = len(self.roles) > 1 and role == self.roles[-1]
        checkpoint = fuse(open_checkpoint(path), mine, second=second)
        self.digests[role] = checkpoint.digest
        return checkpoint

    def load(self, used: Callable[[], int | None], on_event: OnEvent) -> None:
        """Put in place what stays: every expert, or the first one."""
        swap = self.setting.residency.experts == "swap"
        for role in self.roles[:1] if swap else self.roles:
            model, binder, board = self._bind()
            expected = binder.expected()
            for number, (name, value) in enumerate(stream(self._checkpoints[role], expected, device=binder.device)):
                binder.place(name, value)
                on_event(Event("load", number + 1, len(expected), memory=used(), message=role))
            self._ready[role] = self._finish(role, model, board)
        for role in self.roles[1:] if swap else ():
            # Names and shapes are checked now, so that a run does not fail at its last steps.
            stream(self._checkpoints[role], self._bind()[1].expected())

    def _bind(self) -> tuple[WanDit, Binder, Switchboard | None]:
        setting = self.setting
        model = build_dit(setting.spec, setting.profile.attention)
        host = torch.device("cpu")
        target = host if setting.residency.offload else torch.device(setting.device.torch_name)
        dtype = getattr(torch, DTYPES[setting.profile.precision.compute])
        binder = Binder(model, setting.plan, "dit", setting.registry, device=target, dtype=dtype)
        if setting.residency.offload or not setting.watch.switches:
            return model, binder, None
        board = Switchboard(setting.watch.groups, slots(model), setting.registry, target)
        binder.also = board.take
        return model, binder, board

    def _finish(self, role: str, model: WanDit, board: Switchboard | None) -> Expert:
        setting = self.setting
        device = torch.device(setting.device.torch_name)
        # Streamed blocks are not watched: second weights would have to come and go with them.
        watch = Watch() if setting.residency.offload else setting.watch
        monitor = make_monitor(role, watch, model, board, device)
        monitor.continued(self.monitors.get(role))
        self.monitors[role] = monitor
        if setting.ops is not None:
            setting.ops.attach(model, "dit")
        if setting.residency.offload:
            Offload(model, device)
        kernel_by_kernel = setting.residency.offload or setting.residency.eager or setting.plan.header.get("graph") == "eager"
        if kernel_by_kernel or setting.ops is not None:
            monitor.in_turns = True
            return Expert(model, model, monitor)
        backend = setting.backend
        step: Callable[..., Tensor]
        if board is not None or (monitor.probes is not None and backend.switches_kernels):
            step = backend.compile_switched(model, setting.device, monitor)
        else:
            step = backend.compile_step(model, setting.device)
        monitor.in_turns = step is model
        return Expert(model, step, monitor)

    def get(self, role: str) -> Expert:
        """The expert, brought onto the device if it is not there."""
        if role not in self._ready:
            self._swap_in(role)
        return self._ready[role]

    def prefetch(self, role: str) -> None:
        """Begin to read the weights of `role` on the host, in the background; nothing to do where it is resident."""
        if role in self._ready or self._waiting is not None:
            return
        binder = self._bind()[1]
        values: list[tuple[str, Value]] = []
        problems: list[BaseException] = []

        def read() -> None:
            try:
                with torch.inference_mode():
                    for name, value in stream(self._checkpoints[role], binder.expected()):
                        values.append((name, binder.prepare(name, value)))
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                problems.append(error)

        thread = Thread(target=read, name=f"turbort-prefetch-{role}", daemon=True)
        self._waiting = (role, thread, values, problems)
        thread.start()

    def _swap_in(self, role: str) -> None:
        self.prefetch(role)
        assert self._waiting is not None
        waiting, thread, values, problems = self._waiting
        thread.join()
        self._waiting = None
        if problems:
            raise problems[0]
        self._forget()
        model, binder, board = self._bind()
        while values:
            binder.place(*values.pop())
        self._ready[waiting] = self._finish(waiting, model, board)
        self.swaps += 1
        if waiting != role:
            self._swap_in(role)

    def _forget(self) -> None:
        """Free the experts that are there; what they ran stays counted."""
        for expert in self._ready.values():
            self.rows += executed(expert.model, "dit")
        self._ready.clear()
        self.setting.backend.empty_cache(self.setting.device)

    def settle(self, residency: Residency) -> None:
        """Load under another residency from now on; nothing may be loaded."""
        self.setting = replace(self.setting, residency=residency)

    def executed(self) -> list[dict[str, Any]]:
        """What ran so far, over all experts: sites are those of one expert where only one ran."""
        return merged(self.rows + [row for expert in self._ready.values() for row in executed(expert.model, "dit")])

    def close(self) -> None:
        """Free everything."""
        if self._waiting is not None:
            self._waiting[1].join()
            self._waiting = None
        self._forget()


def merged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per stage, op, provider and precision: calls added up, sites the most that one model had."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["stage"], row["op"], row["provider"], row["precision"])
        before = found.get(key, {"sites": 0, "calls": 0})
        found[key] = {**row, "sites": max(before["sites"], row["sites"]), "calls": before["calls"] + row["calls"]}
    return list(found.values())
