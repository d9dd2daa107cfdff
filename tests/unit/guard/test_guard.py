"""Probes, hysteresis and policies on their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from turbort.errors import InputError
from turbort.guard.groups import Group, Member
from turbort.guard.monitor import CALM_STEPS, Monitor, Watch
from turbort.guard.policy import Policy, merged
from turbort.guard.probe import CREST, EVERY, ROWS, Probes
from turbort.plan import Choice
from turbort.precision import PRECISIONS
from turbort.quant.schemes import quantize


def group(name: str = "blocks.0.ffn.0", kind: Any = "rows", width: int = 256, heads: int = 1) -> Group:
    choice = Choice(f"dit/{name}.op", "linear", "ffn.in", "w8a8", "reference/reference")
    return Group(name, kind, width, heads, (Member(choice, choice),), 0)


def share(x: Any, *more: Any, **kind: Any) -> float:
    one = group(**kind)
    probes = Probes([one], torch.device("cpu"))
    probes.take(one, (x, *more))
    return probes.shares()[0]


def test_normal_rows_have_no_outliers_and_a_scaled_channel_makes_every_row_one() -> None:
    x = torch.randn(1, 500, 256, generator=torch.Generator().manual_seed(0))
    assert share(x) == 0.0
    x[..., 3] = 100.0
    assert share(x) == 1.0
    assert share(quantize(x, "int8-token")) == 1.0  # codes stand for their values


def test_the_share_counts_rows() -> None:
    x = torch.randn(1, 4 * ROWS, 256, generator=torch.Generator().manual_seed(0))
    x[:, :: 4 * 4, 0] = 1000.0  # every fourth of the sampled rows
    assert share(x) == pytest.approx(0.25)


def test_the_limit_is_where_the_other_values_are_rounded_like_four_bits() -> None:
    """The measured int8 error of everything but the outlier crosses w4a8's budget where the formula says."""
    generator = torch.Generator().manual_seed(1)
    for factor, over in ((0.9, False), (1.1, True)):
        x = torch.randn(1, ROWS, 4096, generator=generator)
        x[..., 0] = factor * CREST * x[..., 1:].square().mean(-1).sqrt()
        wrong = (quantize(x, "int8-token").dequantize() - x)[..., 1:].square().sum() / x[..., 1:].square().sum()
        assert (float(wrong) > PRECISIONS["w4a8"].max_nmse) is over
        assert share(x, width=4096) == float(over)


def test_several_outlier_channels_do_not_hide_each_other() -> None:
    x = torch.randn(1, ROWS, 1536, generator=torch.Generator().manual_seed(2))
    x[..., :5] = torch.tensor([200.0, 180.0, -190.0, 210.0, -150.0])
    assert share(x, width=1536) == 1.0


def test_logits_of_wild_queries_count() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 300, 2, 128, generator=generator)
    kind = {"kind": "logits", "width": 256, "heads": 2}
    assert share(q, k, **kind) == 0.0
    k[..., 7] *= 60
    assert share(q, k, **kind) > 0.9


class Fixed:
    """Stands in for probes: says what it is told."""

    listens = True

    def alternate(self, step: int, near: frozenset[str]) -> None:
        pass

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def shares(self) -> list[float]:
        return [self.values.pop(0)]


class Board:
    def __init__(self) -> None:
        self.promoted: frozenset[str] = frozenset()
        self.level: frozenset[str] = frozenset()

    @property
    def active(self) -> frozenset[str]:
        return self.promoted | self.level

    def set(self, promoted: frozenset[str]) -> None:
        self.promoted = promoted

    def strengthen(self, level: frozenset[str]) -> None:
        self.level = level


def monitor(values: list[float], mode: Any = "promote") -> Monitor:
    made = Monitor("dit", Watch(mode, 0.05, (group(),)), Board(), None, {})  # type: ignore[arg-type]
    made.probes = Fixed(values)  # type: ignore[assignment]
    return made


def test_hysteresis() -> None:
    """Up above the threshold at once, down only after several steps below half of it."""
    seen = monitor([0.06, 0.04, 0.01, 0.04, *[0.01] * CALM_STEPS, 0.01, 0.2])
    up, redo = [], []
    for _ in range(6 + CALM_STEPS):
        seen.before()
        redo.append(seen.after())
        up.append(bool(seen.board.promoted))  # type: ignore[union-attr]
    assert redo == [True, *[False] * (4 + CALM_STEPS), True]
    assert up == [True] * (3 + CALM_STEPS) + [False, False, True]
    assert [event["action"] for event in seen.events] == ["promote", "demote", "promote"]
    # The step that showed the calm still ran promoted.
    assert [bool(names) for names in seen.steps] == [True] * (4 + CALM_STEPS) + [False, True]


def test_a_new_video_begins_unpromoted_and_the_policy_covers_both() -> None:
    seen = monitor([0.2, 0.0, 0.0])
    seen.before()
    seen.after()
    seen.begin()
    assert seen.board.promoted == frozenset()  # type: ignore[union-attr]
    seen.before()
    seen.after()
    assert seen.steps == (frozenset({"blocks.0.ffn.0"}),)


def test_a_site_that_its_level_runs_wide_is_promoted_without_another_pass() -> None:
    """It must stay wide when the level falls, and the step that showed the outlier has not rounded it."""
    name = frozenset({"blocks.0.ffn.0"})
    seen = monitor([0.2, 0.2, 0.0])
    seen.before(name)
    assert seen.after() is False
    assert seen.events[0]["action"] == "promote"
    assert seen.events[0]["repeated"] is False
    seen.before(frozenset())
    assert seen.board.active == name  # type: ignore[union-attr]
    assert seen.after() is False


def test_quiet_sites_are_sampled_in_turns_and_near_ones_always() -> None:
    groups = [group(f"blocks.{i}.ffn.0") for i in range(2 * EVERY)]
    probes = Probes(groups, torch.device("cpu"))
    wild = torch.randn(1, ROWS, 256, generator=torch.Generator().manual_seed(0))
    wild[..., 0] = 1e4

    def heard(step: int, always: frozenset[str] = frozenset()) -> set[str]:
        probes.turn(step, always)
        before = probes.shares()
        probes._last = [0.0] * len(groups)
        for one in groups:
            probes.take(one, (wild,))
        after = probes.shares()
        probes._last = before
        return {one.name for one, share in zip(groups, after, strict=True) if share == 1.0}

    everything = {one.name for one in groups}
    assert heard(1) == everything
    turns = [heard(step) for step in range(2, 2 + EVERY)]
    assert all(len(turn) == 2 for turn in turns)
    assert set().union(*turns) == everything
    assert groups[0].name in heard(2, frozenset({groups[0].name}))


def test_a_replayed_step_is_sampled_every_second_time_while_all_is_quiet() -> None:
    """The graphs with and without samples have keys of their own; a step without them judges nothing."""
    groups = [group("blocks.0.ffn.0"), group("blocks.1.ffn.0")]
    probes = Probes(groups, torch.device("cpu"))
    tame = torch.randn(1, ROWS, 256, generator=torch.Generator().manual_seed(0))
    near = tame.clone()
    near[:, 0, 0] = 1e4  # one row of 32 is 3 %, above half of the threshold of 5 %
    seen = Monitor("dit", Watch("promote", 0.05, tuple(groups)), Board(), None, {})  # type: ignore[arg-type]
    seen.probes = probes
    listened, keys = [], set()
    for x in (tame, tame, tame, tame, near, tame, tame):
        seen.before()
        listened.append(probes.listens)
        keys.add(seen.key)
        for one in groups:
            probes.take(one, (x,))
        assert seen.after() is False
    assert listened == [True, False, True, False, True, True, True]  # the sixth because the fifth was near; then its own turn
    assert len(keys) == 2


def test_what_was_not_sampled_keeps_its_share() -> None:
    groups = [group(f"blocks.{i}.ffn.0") for i in range(EVERY)]
    probes = Probes(groups, torch.device("cpu"))
    wild = torch.randn(1, ROWS, 256, generator=torch.Generator().manual_seed(0))
    wild[..., 0] = 1e4
    probes.turn(1, frozenset())
    probes.take(groups[1], (wild,))
    assert probes.shares() == [0.0, 1.0, 0.0, 0.0]
    probes.turn(EVERY, frozenset())  # the turn of groups[0]
    assert probes.shares() == [0.0, 1.0, 0.0, 0.0]
    probes.turn(EVERY - 1, frozenset())  # the turn of groups[1], which is calm now
    assert probes.shares() == [0.0] * 4


def test_a_policy_keeps_clips_apart_where_levels_made_them_differ(tmp_path: Path) -> None:
    a, b = frozenset({"a"}), frozenset({"b"})
    policy = Policy("tiny", "123", {"dit": (a | b, a)}, {"dit": ((a,), (b, frozenset()))})
    (tmp_path / "p.yaml").write_text(policy.dumps())
    again = Policy.load(tmp_path / "p.yaml")
    assert again == policy
    assert [again.at("dit", 1, clip) for clip in (0, 1, 2)] == [a, b, a | b]
    assert again.at("dit", 9, 1) == frozenset()
    with pytest.raises(InputError, match="promotes b"):
        Policy("tiny", "123", {}, policy.clips).check("tiny", "123", ["a"])


def test_policies_round_trip_and_are_checked(tmp_path: Path) -> None:
    steps = (frozenset(), frozenset({"a"}), frozenset({"a"}), frozenset())
    policy = Policy("tiny", "123", {"dit": steps})
    (tmp_path / "p.yaml").write_text(policy.dumps())
    again = Policy.load(tmp_path / "p.yaml")
    assert [again.at("dit", i) for i in (1, 2, 3, 4, 9)] == [*steps, frozenset()]
    assert again.at("low", 1) == frozenset()
    again.check("tiny", "123", ["a", "b"])
    with pytest.raises(InputError, match="recorded for"):
        again.check("tiny", "124", ["a"])
    with pytest.raises(InputError, match="promotes a"):
        again.check("tiny", "123", ["b"])
    for text in ("x", "policy: 2\n", "policy: 1\nmodel: a\nplan: b\nroles: {dit: [{from_step: 0, promoted: []}]}\n"):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(InputError):
            Policy.load(tmp_path / "p.yaml")


def test_merged_policies_promote_what_either_does() -> None:
    a, b = frozenset({"a"}), frozenset({"b"})
    assert merged([a, a], [b]) == (a | b, a | b)
    assert merged([], [b]) == (b,)
