"""Finding Ascend devices: cheap where torch-npu is absent, honest where it is broken."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from turbort import Device, Unavailable
from turbort_ascend.soc import FAMILIES, Family, family_of

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
FUSED = "TURBORT_ASCEND_FUSED"
"""Set to 1 to use fused ops that torch-npu has but does not document; devices then have the feature `fused`."""
OPS = (
    "npu_add_layer_norm",
    "npu_block_sparse_attention",
    "npu_convert_weight_to_int4pack",
    "npu_dynamic_quant",
    "npu_fused_infer_attention_score",
    "npu_fusion_attention",
    "npu_gelu_quant",
    "npu_prompt_flash_attention",
    "npu_quant_matmul",
    "npu_rms_norm",
    "npu_rotary_mul",
    "npu_weight_quant_batchmatmul",
)
"""Ops of torch-npu that kernels ask for; each is a feature tag where `torch.ops.npu` has it, whatever the version."""

EMULATED = "emulated"
"""Feature tag of a device whose driver is turbort's own stand-in; its arithmetic is the references'."""

_CANN = "install CANN, `source set_env.sh` of its toolkit in this shell, then run `turbort doctor`"


def find_devices() -> list[Device] | Unavailable:
    """The NPUs of this machine, or why there are none."""
    if find_spec("torch_npu") is None:
        return Unavailable(
            "torch-npu is not installed", "pip install torch-npu==VERSION, the VERSION of your torch (2.13.0 for torch 2.13.0)"
        )
    try:
        torch = load_torch_npu()
    except Exception as error:  # noqa: BLE001 - a vendor package without its driver can raise anything
        return Unavailable(f"torch-npu is installed but does not load: {_first_line(error)}", _fix(str(error)))
    if not torch.npu.is_available():
        return Unavailable(
            "torch-npu loads, but AscendCL reports no device",
            "check the driver with `npu-smi info`, and ASCEND_RT_VISIBLE_DEVICES",
        )
    return [_device(torch, index) for index in range(torch.npu.device_count())]


def load_torch_npu() -> Any:
    """torch with torch_npu loaded. torch's own autoloading is off meanwhile: there it would abort `import torch`."""
    with _no_autoload():
        import torch
        import torch_npu  # noqa: F401 - importing registers the device
    return torch


@contextmanager
def _no_autoload() -> Iterator[None]:
    before = os.environ.get(AUTOLOAD)
    if "torch" not in sys.modules:
        os.environ[AUTOLOAD] = "0"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(AUTOLOAD, None)
        else:
            os.environ[AUTOLOAD] = before


def has_triton() -> bool:
    """Whether Triton-Ascend is installed; it calls its module `triton`, so the distribution's name decides."""
    try:
        metadata.version("triton-ascend")
    except metadata.PackageNotFoundError:
        return False
    return True


def make_device(
    chip: str, *, index: int = 0, memory: int | None = None, features: frozenset[str] = frozenset(), emulated: bool = False
) -> Device:
    """A Device for a chip by name, with the truth table of its family.

    A chip that no family knows gets float32 and float16 and no feature of its own.
    """
    family = family_of(chip)
    tags = set(features) | {"npu"}
    details = {"family": family.name if family else "unknown chip", "products": family.products if family else ""}
    if family:
        tags |= _family_tags(family, features)
    if emulated:
        tags.add(EMULATED)
        details["evidence"] = "emulated driver and arithmetic: nothing here was run on a card"
    return Device(
        backend="ascend",
        name=f"{chip} (emulated)" if emulated else chip,
        torch_name=f"npu:{index}",
        arch=chip,
        memory=memory,
        dtypes=family.dtypes if family else frozenset({"float32", "float16"}),
        features=frozenset(tags),
        details=details,
    )


def _family_tags(family: Family, features: frozenset[str]) -> set[str]:
    tags = {family.name}
    if family.graph and "npugraph" in features:
        tags.add("graph")
    if family.triton and "triton-ascend" in features:
        tags.add("triton")
    return tags


def family(device: Device) -> str:
    """Short name of the device's family, or an empty string."""
    return next((known.name for known in FAMILIES if known.name in device.features), "")


def _device(torch: Any, index: int) -> Device:
    features = {name for name in OPS if hasattr(torch.ops.npu, name)}
    if hasattr(torch.npu, "NPUGraph"):
        features.add("npugraph")
    if has_triton():
        features.add("triton-ascend")
    if os.environ.get(FUSED) == "1":
        features.add("fused")
    from turbort_ascend.emulated import active

    return make_device(
        torch.npu.get_device_name(index),
        index=index,
        memory=int(torch.npu.mem_get_info(index)[1]),
        features=frozenset(features),
        emulated=active(),
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _fix(text: str) -> str:
    if ".so" in text or "ASCEND" in text or "libascend" in text:
        return _CANN
    return "install the torch-npu whose version equals your torch's, or `pip uninstall torch-npu`"
