"""The unquantised transformer under observation: every slot runs its reference and reports what it saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from turbort.bind import Binder
from turbort.calibrate.observe import Site, Watch, Weights
from turbort.experts import Expert, Experts
from turbort.guard.monitor import make_monitor
from turbort.guard.switch import Switchboard
from turbort.models.sites import build_dit
from turbort.models.wan_dit import WanDit
from turbort.op import Slot, slots
from turbort.plan import Plan
from turbort.planner import DTYPES, LINEAR_ROLES
from turbort.precision import ATTENTION
from turbort.site_record import SiteRecord

LINEARS = ("w8a8", "w8a8-block128", "fp8", "w4a8", "w4a16")
"""What linears are tried at; block-sparse precisions are added where a weight has empty tiles."""
SPARSE = ("bsq8", "bsq4")


class Watched(Experts):
    """Experts whose weights stay in the compute dtype and whose every call of the transformer is followed by a backward pass."""

    def __init__(self, *args: Any, linears: tuple[str, ...] = LINEARS, moments: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch = Watch(moments=moments)
        self.linears = linears
        self.sites: dict[str, Site] = {}
        self._weights = Weights()

    def _bind(self) -> tuple[WanDit, Binder, Switchboard | None]:
        setting = self.setting
        model = build_dit(setting.spec, setting.profile.attention)
        device, dtype = torch.device(setting.device.torch_name), getattr(torch, DTYPES[setting.profile.precision.compute])
        # A plan without choices binds nothing: slots keep their references, weights stay plain tensors.
        plan = Plan(setting.plan.header, ())
        return model, Binder(model, plan, "dit", setting.registry, device=device, dtype=dtype), None

    def _finish(self, role: str, model: WanDit, board: Switchboard | None) -> Expert:
        for path, slot in slots(model).items():
            name = f"dit/{path}"
            # Experts share one plan, so they share one record.
            site = Site(name, slot, self._candidates(model, path, slot), self._weights, self.watch)
            if name in self.sites:
                site.steps = self.sites[name].steps
            self.sites[name] = site
            slot.fn = site
        monitor = make_monitor(role, self.setting.watch, model, None, torch.device(self.setting.device.torch_name))
        return Expert(model, self._step(model), monitor)

    def _candidates(self, model: WanDit, path: str, slot: Slot) -> tuple[str, ...]:
        if slot.role == "attn.self":
            return ATTENTION
        if slot.op.name != "linear" or not slot.role.startswith(LINEAR_ROLES):
            return ()
        weight = model.get_parameter(f"{path.removesuffix('.op')}.weight")
        return (*self.linears, *(SPARSE if _has_empty_tiles(weight) else ()))

    def _step(self, model: WanDit) -> Callable[..., Tensor]:
        def step(*args: Any, **kwargs: Any) -> Tensor:
            with torch.enable_grad():
                out: Tensor = model(*args, **kwargs)
                self.watch.backward(out)
            return out.detach()

        return step

    def moments(self) -> dict[str, Tensor]:
        """E[x x^T] of every observed linear, by the name of its weight."""
        found = {}
        for path, site in self.sites.items():
            if site.moments is not None:
                found[path.removeprefix("dit/").removesuffix(".op") + ".weight"] = (site.moments / site.rows).cpu()
        return found

    def records(self) -> Mapping[str, SiteRecord]:
        """What all sites saw, by path; those that the model never reached are left out."""
        return {path: site.record() for path, site in self.sites.items() if site.steps}


def _has_empty_tiles(weight: Tensor) -> bool:
    from turbort.calibrate.observe import weight_sparsity

    return weight_sparsity(weight)[0] > 0.0
