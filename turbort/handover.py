"""Which form of a producer's output its readers want: codes for a quantised linear, sums for sparse attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from turbort.kernel import Call, Kernel
from turbort.plan import Choice
from turbort.precision import PRECISIONS


def wanted_schemes(
    sites: Sequence[Sequence[Call]], choices: Sequence[Choice], kernel: Callable[[Choice], Kernel]
) -> dict[tuple[str, str], str | None]:
    """By paths of producer and reader, the QTensor scheme in which the reader wants the output; None or no entry: plain.

    A linear wants the scheme of its precision; another kernel says what it `wants` of arguments that are one site's whole output.
    Where one output is two arguments of a reader, only what both want counts.
    """
    by_path = {choice.path: choice for choice in choices}
    found: dict[tuple[str, str], str | None] = {}
    for calls in sites:
        for reader in calls[0].consumers:
            choice = by_path.get(reader)
            if choice is not None and choice.op == "linear":
                found[calls[0].path, reader] = PRECISIONS[choice.precision].emit
    for calls in sites:
        reader, makers = calls[0].path, calls[0].makers
        wants = kernel(by_path[reader]).wants if makers else None
        wishes = wants(calls[0]) if wants else {}
        for name, maker in makers.items() if wishes else ():
            scheme = wishes.get(name)
            found[maker, reader] = scheme if found.get((maker, reader), scheme) == scheme else None
    return found
