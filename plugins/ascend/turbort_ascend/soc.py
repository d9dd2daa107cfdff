"""What is known of each Ascend chip family: how it is named and what it computes in. No torch here.

Sources: the `_op_plugin_docs.py` of torch-npu 2.13.0 (supported products and dtypes per op) and the target list of
`bishengir-compile` 1.2.0 (chips that Triton-Ascend can compile for). No speed figure is kept: published ones disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Family:
    """Chips that behave alike.

    Attributes:
        name: short name, also a feature tag (`310P`, `A2`, `A3`, `A5`).
        chips: globs of the names that AscendCL reports.
        products: how the vendor's documents call it.
        dtypes: storage dtypes it computes in.
        triton: whether Triton-Ascend can compile for it.
        graph: whether a denoising step may be captured in an NPUGraph.
    """

    name: str
    chips: tuple[str, ...]
    products: str
    dtypes: frozenset[str]
    triton: bool
    graph: bool


_BASE = frozenset({"float32", "float16", "int8"})
FAMILIES = (
    Family("310P", ("Ascend310P*",), "Atlas 推理系列加速卡产品", _BASE, triton=False, graph=False),
    Family("A2", ("Ascend910B*",), "Atlas A2 训练系列产品/Atlas 800I A2 推理产品", _BASE | {"bfloat16"}, triton=True, graph=True),
    Family(
        "A3", ("Ascend910_93*",), "Atlas A3 训练系列产品/Atlas A3 推理系列产品", _BASE | {"bfloat16"}, triton=True, graph=True
    ),
    Family(
        "A5",
        ("Ascend950*", "Ascend910_95*"),
        "Ascend 950PR/Ascend 950DT",
        _BASE | {"bfloat16", "float8_e4m3fn", "float8_e5m2"},
        triton=True,
        graph=True,
    ),
)

CHIPS = ("Ascend910B3", "Ascend910_9391", "Ascend950PR_9589")
"""One chip of each family that Triton-Ascend compiles for."""


def family_of(chip: str) -> Family | None:
    """The family of a chip by the name AscendCL reports (`Ascend910B3`); None for one this table does not know."""
    for family in FAMILIES:
        if any(fnmatchcase(chip, pattern) for pattern in family.chips):
            return family
    return None


def family_named(name: str) -> Family:
    """The family with this short name; KeyError otherwise."""
    return {family.name: family for family in FAMILIES}[name]
