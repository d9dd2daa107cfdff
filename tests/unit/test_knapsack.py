"""The choice of one option per group, against brute force and against its own bound."""

from __future__ import annotations

import itertools
import math
from time import process_time

from hypothesis import example, given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.knapsack import Option, frontier, lower_bound, solve

numbers = st.floats(0, 100, allow_nan=False, allow_subnormal=False).map(lambda x: round(x, 3))
options = st.builds(Option, numbers, numbers, numbers)
instances = st.lists(st.lists(options, min_size=1, max_size=4), min_size=0, max_size=5)
shares = st.floats(0, 1)


def every(groups):
    """All selections with their sums."""
    for picks in itertools.product(*(range(len(group)) for group in groups)):
        taken = [group[pick] for group, pick in zip(groups, picks, strict=True)]
        yield picks, *(math.fsum(getattr(o, name) for o in taken) for name in ("time", "error", "memory"))


def between(groups, name, share):
    """A bound between the least and the largest sum."""
    low = math.fsum(min(getattr(o, name) for o in group) for group in groups)
    high = math.fsum(max(getattr(o, name) for o in group) for group in groups)
    return low + share * (high - low)


@examples(150)
@given(instances, shares, st.one_of(st.none(), shares))
def test_the_choice_is_the_best_of_all(groups, error_share, memory_share):
    error = between(groups, "error", error_share)
    memory = math.inf if memory_share is None else between(groups, "memory", memory_share)
    feasible = [time for _, time, e, m in every(groups) if e <= error + 1e-9 and m <= memory + 1e-9]
    found = solve(groups, error=error, memory=memory)
    if found is None:
        # Rounding may part the two only at the bound itself.
        assert not [1 for _, _, e, m in every(groups) if e <= error - 1e-9 and m <= memory - 1e-9]
        return
    assert found.time <= min(feasible) + 1e-9
    assert found.time >= min(feasible) - 1e-9
    taken = [group[pick] for group, pick in zip(groups, found.picks, strict=True)]
    assert math.isclose(found.time, math.fsum(o.time for o in taken), abs_tol=1e-9)
    assert found.error <= error + 1e-9
    assert found.memory <= memory + 1e-9
    assert found.bound <= found.time + 1e-9


@examples(100)
@given(instances, shares, shares)
def test_the_bound_lies_below_every_feasible_choice(groups, error_share, memory_share):
    error, memory = between(groups, "error", error_share), between(groups, "memory", memory_share)
    bound = lower_bound(groups, error, memory)
    for _, time, e, m in every(groups):
        if e <= error and m <= memory:
            assert bound <= time + 1e-6 * (1 + abs(time))


HALF, WHOLE = 49.688, 79.0


@examples(100)
@example(  # whose sums of errors are equal, and are not while they are added up
    [
        [Option(0.0, HALF, 0.0)],
        [Option(0.0, WHOLE, 0.0), Option(1.0, HALF, 0.0)],
        [Option(0.0, WHOLE, 0.0), Option(2.0, HALF, 0.0)],
    ]
)
@given(instances)
def test_the_frontier_has_every_choice_that_no_other_beats(groups):
    front = frontier(groups)
    assert all(a.time < b.time and a.error > b.error for a, b in itertools.pairwise(front))
    for _, time, error, _ in every(groups):
        assert any(point.time <= time + 1e-9 and point.error <= error + 1e-9 for point in front)


def test_a_large_instance_is_near_its_bound_and_quick():
    """The groups of a 1.3B model at most: 160 of seven options, thinned all the way."""
    import random

    draw = random.Random(0)
    groups = []
    for _ in range(160):
        size = draw.uniform(1, 10)
        groups.append([Option(size / speed, draw.uniform(0.5, 2) * size * harm, size * bits) for speed, harm, bits in SPEEDS])
    start = process_time()
    error = between(groups, "error", 0.2)
    found = solve(groups, error=error)
    assert process_time() - start < 10
    assert found is not None
    assert found.error <= error
    assert found.gap < 2e-3
    tight = solve(groups, error=error, memory=between(groups, "memory", 0.4))
    assert tight is not None
    assert tight.gap < 2e-2
    assert tight.time >= found.bound


SPEEDS = [(1, 0, 2), (1.4, 2e-5, 1.1), (1.7, 9e-5, 1), (1.75, 1.2e-4, 1), (1.6, 9e-4, 1), (2.0, 8e-3, 0.5), (1.2, 7e-3, 0.5)]


def test_times_that_are_as_good_as_equal_leave_the_choice_to_the_error():
    groups = [[Option(1.0, 5.0), Option(1.005, 1.0), Option(2.0, 0.0)]]
    assert solve(groups).picks == (0,)
    assert solve(groups, tie=0.01).picks == (1,)
    assert solve(groups, error=0.5, tie=0.01).picks == (2,)


def test_bounds_that_cannot_be_met_give_nothing():
    groups = [[Option(1, 2, 3), Option(2, 1, 3)]]
    assert solve(groups, error=0.5) is None
    assert solve(groups, error=5, memory=2) is None
    assert solve([], error=0).picks == ()
