"""Physical layouts along a model: which kernels take the layout that is there, and where a conversion remains. No torch here.

A kernel states the layout that it takes and returns (`Kernel.layout`): `row` (the order of the axes), `channels_last`, `nz`
(Ascend's fractal tiles), `tile-padded` (TPU), or `any` for one that takes and returns whatever comes. A conversion is needed on
every edge of the dataflow whose two ends differ. Packed weights do not count: they are laid out once, at load.
"""

from __future__ import annotations

from collections.abc import Sequence

ANY, ROW = "any", "row"


def settle(options: Sequence[Sequence[str]], sources: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """The option per site that needs the fewest conversions, and how many remain; the first option wins ties.

    `options[i]` are the layouts that site i may have; `sources[i]` are the earlier sites it reads (none: the input, `row`).
    Exact: sites are taken in order, and of all choices so far only the best is kept for each combination of layouts of
    those sites that are still to be read, of which a network has few at a time.
    """
    last = list(range(len(options)))
    for reader, read in enumerate(sources):
        for site in read:
            last[site] = max(last[site], reader)
    # Open layouts by site -> (conversions so far, sum of positions, picks).
    states: dict[tuple[tuple[int, str], ...], tuple[int, int, tuple[int, ...]]] = {(): (0, 0, ())}
    for index, layouts in enumerate(options):
        found: dict[tuple[tuple[int, str], ...], tuple[int, int, tuple[int, ...]]] = {}
        for state, (count, rank, picks) in states.items():
            known = dict(state)
            for pick, layout in enumerate(layouts):
                comes = [known[source] for source in sources[index]] or [ROW]
                gives = comes[-1] if layout == ANY else layout
                more = 0 if layout == ANY else sum(source != layout for source in comes)
                still = tuple((site, value) for site, value in (*known.items(), (index, gives)) if last[site] > index)
                made = (count + more, rank + pick, (*picks, pick))
                if still not in found or made < found[still]:
                    found[still] = made
        states = found
    count, _, picks = min(states.values())
    return list(picks), count


def conversions(layouts: Sequence[str], sources: Sequence[Sequence[int]]) -> list[list[str]]:
    """Per site, the conversions of what it reads, such as `row -> channels_last`."""
    gives: list[str] = []
    found = []
    for layout, read in zip(layouts, sources, strict=True):
        comes = [gives[source] for source in read] or [ROW]
        found.append([] if layout == ANY else [f"{source} -> {layout}" for source in comes if source != layout])
        gives.append(comes[-1] if layout == ANY else layout)
    return found
