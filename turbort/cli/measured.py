"""What this machine has measured for the sites of a plan: `measured 0.41 ms vs 0.63`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turbort.kernel import Call, TensorSpec
from turbort.kernel_times import KernelTimes, shape_class

if TYPE_CHECKING:
    from turbort.plan import Choice, Plan

NAMES = {"linear": ("x", "weight"), "attention": ("q", "k"), "sla_attention": ("q", "k")}


def remarks(plan: Plan, times: KernelTimes | None = None) -> dict[str, str]:
    """By path: the time of the chosen precision, and of the plan's compute precision where that is another one.

    Empty where the machine's table (`turbort bench --save`, `turbort plan --measure`) has nothing for this device.
    """
    table = KernelTimes.load() if times is None else times
    found: dict[str, str] = {}
    for choice in plan if table.rows else ():
        shape = shape_class(_call(choice, plan))
        mine, other = (
            table.ms(plan.header["backend"], plan.header["arch"], choice.op, precision, shape)
            for precision in (choice.precision, plan.header["compute"])
        )
        if mine is not None:
            beside = f" vs {other:.2f}" if other is not None and choice.precision != plan.header["compute"] else ""
            found[choice.path] = f"measured {mine:.2f} ms{beside}"
    return found


def _call(choice: Choice, plan: Plan) -> Call:
    """As much of the site's call as its shape class needs."""
    shapes = [() if text == "scalar" else tuple(map(int, text.split("x"))) for text in choice.shapes]
    names = NAMES.get(choice.op, ("x",))
    args: dict[str, object] = {name: TensorSpec(shape, "") for name, shape in zip(names, shapes, strict=False)}
    if choice.op == "sla_attention":
        wish = plan.header["attention"]
        args["topk"] = wish["topk"] if wish["kind"] == "sla" else 1.0
    return Call(choice.op, choice.path, choice.role, args)
