"""Choosing one option per group: least time under a bound on error and a bound on memory. No torch here.

    minimise  sum_g time[g, o_g]   subject to   sum_g error[g, o_g] <= E,   sum_g memory[g, o_g] <= M

the multiple-choice knapsack with two constraints. `solve` merges the groups one after the other and keeps the partial choices
that no other one beats in all three respects, which is exact. Where more than `LIMIT` of them are left it thins them out evenly
along the error axis; where memory is bounded and more than `DENSE_LIMIT` are left, memory gets a price instead, the least at
which the choice fits (Lagrangian relaxation), and single exchanges then use the room that is left. The result says how far it
can be from the best: `bound` is a lower bound of the least time, from the dual
    max_{a, b >= 0}  sum_g min_o (time + a error + b memory) - a E - b M.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

LIMIT = 4096
"""Partial choices that are kept while groups are merged."""
DENSE_LIMIT = 256
"""The same with a bound on memory, where comparing them takes quadratic time."""
PRICED_LIMIT = 768
"""The same while a price of memory is looked for."""
SLACK = 1e-12
"""Relative room for rounding when sums are compared with bounds."""

Floats = NDArray[numpy.float64]
Ints = NDArray[numpy.int64]


@dataclass(frozen=True)
class Option:
    """One way to run a group: seconds, predicted error, bytes; what it means is the caller's business."""

    time: float
    error: float
    memory: float = 0.0


@dataclass(frozen=True)
class Selection:
    """An option per group with its sums; `bound` is a time below which nothing feasible lies."""

    picks: tuple[int, ...]
    time: float
    error: float
    memory: float
    bound: float

    @property
    def gap(self) -> float:
        """Relative distance to the bound; 0 means proven best."""
        return max(0.0, self.time - self.bound) / self.time if self.time > 0 else 0.0


@dataclass(frozen=True)
class _States:
    """Partial choices as columns; `parents[k]` and `picks[k]` say how each came to be at merge k."""

    time: Floats
    error: Floats
    memory: Floats


def solve(
    groups: Sequence[Sequence[Option]], *, error: float = math.inf, memory: float = math.inf, tie: float = 0.0
) -> Selection | None:
    """The fastest selection within both bounds; None when none was found.

    Among selections that take at most `tie` longer (relative), which times are not known well enough to tell apart, the
    one with the least error is taken.
    """
    if math.isfinite(memory):
        front = _merge_all(groups, error, memory, DENSE_LIMIT)
        front = _priced(groups, error, memory) if front is None else front
    else:
        front = frontier(groups, error=error)
    fitting = [found for found in front if found.error <= _roomy(error) and found.memory <= _roomy(memory)]
    if not fitting:
        return None
    least = min(found.time for found in fitting)
    close = [found for found in fitting if found.time <= least * (1 + tie)]
    best = min(close, key=lambda found: (found.error, found.time) if tie else (found.time, found.error))
    return Selection(best.picks, best.time, best.error, best.memory, min(best.time, lower_bound(groups, error, memory)))


def frontier(groups: Sequence[Sequence[Option]], *, error: float = math.inf, limit: int = LIMIT) -> list[Selection]:
    """Every selection that no other one beats in time and error, fastest first; `bound` is their own time."""
    found = _merge_all(groups, error, math.inf, limit)
    assert found is not None  # only a bound on memory can be given up
    front: list[Selection] = []
    # Sums were compared as they were added up; rounded once, two of them may be equal.
    for one in sorted(found, key=lambda s: (s.time, s.error)):
        if not front or one.error < front[-1].error:
            front.append(one)
    return front


def _merge_all(groups: Sequence[Sequence[Option]], error: float, memory: float, keep: int) -> list[Selection] | None:
    """All undominated selections; None where memory is bounded and more than `keep` partial ones are left."""
    with_memory = math.isfinite(memory)
    zero = numpy.zeros(1)
    states = _States(zero, zero, zero)
    history: list[tuple[Ints, Ints]] = []
    rest_error, rest_memory = _rest(groups, lambda o: o.error), _rest(groups, lambda o: o.memory)
    for number, options in enumerate(groups):
        states, parents, picks = _merged(states, options)
        # What cannot be completed within the bounds goes first.
        hopeful = states.error + rest_error[number] <= _roomy(error)
        hopeful &= states.memory + rest_memory[number] <= _roomy(memory)
        chosen = numpy.flatnonzero(hopeful)
        chosen = chosen[_undominated(states, chosen, with_memory)]
        if with_memory and len(chosen) > keep:
            return None
        chosen = _thinned(states, chosen, keep)
        states = _States(states.time[chosen], states.error[chosen], states.memory[chosen])
        history.append((parents[chosen], picks[chosen]))
        if not len(chosen):
            return []
    last = _undominated(states, numpy.arange(len(states.time)), with_memory=False)
    order = last[numpy.argsort(states.time[last], kind="stable")]
    return [_selection(groups, history, int(index)) for index in order]


def _priced(groups: Sequence[Sequence[Option]], error: float, memory: float) -> list[Selection]:
    """The fastest selection that fits at some price of memory, improved by single exchanges; empty when none fits."""

    def at(price: float) -> Selection | None:
        charged = [[Option(o.time + price * o.memory, o.error) for o in options] for options in groups]
        front = frontier(charged, error=error, limit=PRICED_LIMIT)
        return _taken(groups, front[0].picks) if front else None

    free = at(0.0)
    if free is None or free.memory <= _roomy(memory):
        return [free] if free else []
    prices = _prices([numpy.array([[o.time, o.error, o.memory] for o in options]) for options in groups], 2)
    low, high, best = 0, len(prices), None
    while low < high:
        middle = (low + high) // 2
        found = at(prices[middle] * (1 + 1e-9))
        if found is not None and found.memory <= _roomy(memory):
            best, high = found, middle
        else:
            low = middle + 1
    return [_exchanged(groups, best, error, memory)] if best else []


def _taken(groups: Sequence[Sequence[Option]], picks: Sequence[int]) -> Selection:
    """The sums of a selection."""
    chosen = [options[pick] for options, pick in zip(groups, picks, strict=True)]
    time = math.fsum(o.time for o in chosen)
    return Selection(tuple(picks), time, math.fsum(o.error for o in chosen), math.fsum(o.memory for o in chosen), time)


def _exchanged(groups: Sequence[Sequence[Option]], start: Selection, error: float, memory: float) -> Selection:
    """`start` with options exchanged, one group at a time, while that saves time and stays within the bounds."""
    best = start
    while True:
        room = (_roomy(error) - best.error, _roomy(memory) - best.memory)
        gains = []
        for number, options in enumerate(groups):
            now = options[best.picks[number]]
            gains += [
                (now.time - o.time, number, pick)
                for pick, o in enumerate(options)
                if o.time < now.time and o.error - now.error <= room[0] and o.memory - now.memory <= room[1]
            ]
        if not gains:
            return best
        _, number, pick = max(gains)
        best = _taken(groups, [*best.picks[:number], pick, *best.picks[number + 1 :]])


def _rest(groups: Sequence[Sequence[Option]], value: Callable[[Option], float]) -> list[float]:
    """Per group, the least that all later groups add."""
    least = [min(value(option) for option in options) for options in groups]
    return [math.fsum(least[number + 1 :]) for number in range(len(groups))]


def _merged(states: _States, options: Sequence[Option]) -> tuple[_States, Ints, Ints]:
    """Every state with every option, and for each the state and the option it is made of."""
    count, width = len(states.time), len(options)

    def summed(left: Floats, right: list[float]) -> Floats:
        sums: Floats = numpy.add.outer(left, numpy.asarray(right)).ravel()
        return sums

    made = _States(
        summed(states.time, [o.time for o in options]),
        summed(states.error, [o.error for o in options]),
        summed(states.memory, [o.memory for o in options]),
    )
    return made, numpy.repeat(numpy.arange(count), width), numpy.tile(numpy.arange(width), count)


def _undominated(states: _States, among: Ints, with_memory: bool) -> Ints:
    """Positions in `among` of states that no other one equals or beats in every respect; sorted by error."""
    time, error, memory = states.time[among], states.error[among], states.memory[among]
    order = numpy.lexsort((memory, time, error))
    if not with_memory:
        times = time[order]
        best = numpy.minimum.accumulate(times)
        first = numpy.concatenate(([True], times[1:] < best[:-1])) if len(times) else numpy.zeros(0, bool)
        kept: Ints = order[first]
        return kept
    found: list[int] = []
    times, bytes_ = numpy.empty(len(order)), numpy.empty(len(order))
    for index in order:
        count = len(found)
        if not numpy.any((times[:count] <= time[index]) & (bytes_[:count] <= memory[index])):
            times[count], bytes_[count] = time[index], memory[index]
            found.append(int(index))
    return numpy.asarray(found, dtype=numpy.int64)


def _thinned(states: _States, chosen: Ints, keep: int) -> Ints:
    """At most about `keep` states, spread evenly by rank of error; the safest and the fastest are always among them."""
    if len(chosen) <= keep:
        return chosen
    wanted = numpy.unique(numpy.linspace(0, len(chosen) - 1, keep).round().astype(numpy.int64))
    return chosen[wanted]


def _selection(groups: Sequence[Sequence[Option]], history: Sequence[tuple[Ints, Ints]], index: int) -> Selection:
    picks: list[int] = []
    for parents, chosen in reversed(history):
        picks.append(int(chosen[index]))
        index = int(parents[index])
    return _taken(groups, picks[::-1])


def lower_bound(groups: Sequence[Sequence[Option]], error: float, memory: float) -> float:
    """A time that no feasible selection is below: the Lagrangian dual, raised as far as a search over both prices gets."""
    tables = [numpy.array([[o.time, o.error, o.memory] for o in options]) for options in groups]
    if not tables:
        return 0.0

    def dual(price_error: float, price_memory: float) -> float:
        prices = numpy.array([1.0, price_error, price_memory])
        value = math.fsum(float((table @ prices).min()) for table in tables)
        return value - (price_error * error if price_error else 0.0) - (price_memory * memory if price_memory else 0.0)

    # Any prices give a valid bound. The dual is concave in each of them, so a search by thirds climbs to its top.
    best, at = dual(0.0, 0.0), (0.0, 0.0)
    axes = [(0, _prices(tables, 1)) if math.isfinite(error) else None, (1, _prices(tables, 2)) if math.isfinite(memory) else None]
    for axis, prices in [pair for pair in axes if pair] * 3:
        found = _top(prices, lambda p, axis=axis, at=at: dual(p, at[1]) if axis == 0 else dual(at[0], p))  # type: ignore[misc]
        if found[0] > best:
            best, at = found[0], ((found[1], at[1]) if axis == 0 else (at[0], found[1]))
    return best


def _top(prices: Sequence[float], value: Callable[[float], float]) -> tuple[float, float]:
    """The largest value of a concave function over a sorted list, and where it is."""
    low, high = 0, len(prices) - 1
    while high - low > 2:
        third = (high - low) // 3
        left, right = low + third, high - third
        if value(prices[left]) < value(prices[right]):
            low = left
        else:
            high = right
    return max((value(prices[index]), prices[index]) for index in range(low, high + 1))


def _prices(tables: Sequence[Floats], column: int) -> list[float]:
    """Prices at which some group changes its mind: seconds saved per unit of column, in rising order, 0 first."""
    found = []
    for table in tables:
        time, cost = table[:, 0], table[:, column]
        slower = (time[:, None] - time[None, :]).ravel()
        cheaper = (cost[None, :] - cost[:, None]).ravel()
        useful = (slower > 0) & (cheaper > 0)
        found.append(slower[useful] / cheaper[useful])
    every = numpy.unique(numpy.concatenate(found)) if found else numpy.zeros(0)
    return [0.0, *map(float, every)]


def _roomy(bound: float) -> float:
    return bound + SLACK * abs(bound) if math.isfinite(bound) else bound
