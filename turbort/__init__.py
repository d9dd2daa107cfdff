"""turbort runs video-diffusion transformers on GPUs, NPUs, TPUs and CPUs, by a plan that one can read.

Public names load on first use, so that `import turbort` takes milliseconds and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbort.backend import Backend as Backend
    from turbort.backend import Device as Device
    from turbort.backend import MemoryStats as MemoryStats
    from turbort.backend import Unavailable as Unavailable
    from turbort.checks import Check as Check
    from turbort.checks import Outcome as Outcome
    from turbort.errors import InputError as InputError
    from turbort.errors import NoKernelError as NoKernelError
    from turbort.errors import PlanError as PlanError
    from turbort.errors import TurbortError as TurbortError
    from turbort.errors import UnavailableError as UnavailableError
    from turbort.hookspecs import HOOK_API as HOOK_API
    from turbort.hookspecs import hookimpl as hookimpl
    from turbort.job import Event as Event
    from turbort.job import Job as Job
    from turbort.job import Result as Result
    from turbort.kernel import Call as Call
    from turbort.kernel import Kernel as Kernel
    from turbort.kernel import TensorSpec as TensorSpec
    from turbort.models.spec import MODELS as MODELS
    from turbort.models.spec import ModelSpec as ModelSpec
    from turbort.models.spec import get_model as get_model
    from turbort.op import OpSpec as OpSpec
    from turbort.op import Sample as Sample
    from turbort.op import Slot as Slot
    from turbort.plan import Plan as Plan
    from turbort.planner import make_plan as make_plan
    from turbort.precision import PRECISIONS as PRECISIONS
    from turbort.precision import Precision as Precision
    from turbort.profile import Profile as Profile
    from turbort.profile import list_profiles as list_profiles
    from turbort.profile import load_profile as load_profile
    from turbort.profile import pick_profile as pick_profile
    from turbort.quant.qtensor import QTensor as QTensor
    from turbort.registry import Registry as Registry
    from turbort.session import Session as Session

    __version__: str

_HOME = {
    "backend": ("Backend", "Device", "MemoryStats", "Unavailable"),
    "checks": ("Check", "Outcome"),
    "errors": ("InputError", "NoKernelError", "PlanError", "TurbortError", "UnavailableError"),
    "hookspecs": ("HOOK_API", "hookimpl"),
    "job": ("Event", "Job", "Result"),
    "kernel": ("Call", "Kernel", "TensorSpec"),
    "models.spec": ("MODELS", "ModelSpec", "get_model"),
    "op": ("OpSpec", "Sample", "Slot"),
    "plan": ("Plan",),
    "planner": ("make_plan",),
    "precision": ("PRECISIONS", "Precision"),
    "profile": ("Profile", "list_profiles", "load_profile", "pick_profile"),
    "quant.qtensor": ("QTensor",),
    "registry": ("Registry",),
    "session": ("Session",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("turbort")
        except PackageNotFoundError:
            return "0+unknown"
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'turbort' has no attribute {name!r}")
    return getattr(importlib.import_module(f"turbort.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
