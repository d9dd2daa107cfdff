"""Signals, trends, levels and who chooses them, without a model."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turbort.calibration import Calibration, merge
from turbort.errors import InputError, PlanError
from turbort.guard.adapt import Adaptation
from turbort.guard.strength import Cut, Level, Strengths
from turbort.looks import Look, Video, best_trend, cuts, quantile, spearman, trend
from turbort.models.signal import measure
from turbort.profile import parse_profile

LEVELS = (Level(frozenset(), 1.0, 1e-3, 40.0), Level(frozenset({"a"}), 2.0, 1e-4, 50.0))
BASE = "schema: 1\nname: x\ntarget: {backend: cuda}\n"


def test_noise_and_stillness() -> None:
    noise = torch.randn(2, 16, 9, 32, 32, generator=torch.Generator().manual_seed(0))
    assert measure(noise).flatten().tolist() == pytest.approx([4.0, 2.0] * 2, rel=0.02)
    still = noise[:, :, :1].expand(-1, -1, 9, -1, -1)
    assert measure(still)[:, 1].tolist() == [0.0, 0.0]
    assert measure(noise[:, :, :1])[:, 1].tolist() == [0.0, 0.0]
    assert measure(torch.ones(1, 1, 2, 2, 2)).tolist() == [[0.0, 0.0]]


def test_signals_do_not_depend_on_scale_or_batch() -> None:
    x = torch.randn(3, 4, 5, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(-1)
    assert torch.allclose(measure(x), measure(7 * x + 3), rtol=1e-4)
    assert torch.allclose(measure(x)[1:2], measure(x[1:2]))


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=20, unique=True))
def test_rank_correlation(values: list[float]) -> None:
    assert spearman(values, [math.atan(value / 100) for value in values]) == pytest.approx(1.0, abs=0.2)
    ranks = [float(sorted(values).index(value)) for value in values]
    assert spearman(values, ranks) == pytest.approx(1.0)
    assert spearman(values, [-rank for rank in ranks]) == pytest.approx(-1.0)
    assert spearman(values, [1.0] * len(values)) == 0.0


def test_ties_share_their_rank() -> None:
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)  # scipy.stats.spearmanr


def videos(gradients: list[float], errors: list[float], moved: dict[str, float] | None = None) -> list[Video]:
    def looks(gradient: float) -> tuple[Look, ...]:
        return tuple(Look(t, gradient * (5 - i), 0.5, {"w8a8": 1.0}) for i, t in enumerate((999.0, 900.0, 800.0, 700.0)))

    return [Video(looks(g), {"w8a8": e}, moved or {}) for g, e in zip(gradients, errors, strict=True)]


def test_the_sign_of_the_trend_says_which_side_is_hard() -> None:
    falling = videos([float(i) for i in range(1, 13)], [1.0 / i for i in range(1, 13)])
    found = best_trend(falling, ("gradient", "motion"), 1, "w8a8")
    assert found is not None
    assert (found.signal, found.correlation, found.hard, found.label) == ("gradient", pytest.approx(-1.0), "low", "video")
    assert found.tells
    # The easiest quarter has the largest gradients.
    (at,) = cuts(falling, found, "low", [0.25])
    assert sum(video.looks[0].gradient > at for video in falling) == 3
    flat = trend(falling, "motion", 1, "w8a8")
    assert flat is not None
    assert not flat.tells
    assert trend(falling[:2], "gradient", 1, "w8a8") is None


def test_the_error_of_the_first_step_is_a_signal_where_it_was_recorded() -> None:
    errors = [0.1 * i for i in range(1, 13)]
    known = [video for e in errors for video in videos([1.0], [e], {"w8a8": 2 * e})]
    found = best_trend(known, ("gradient", "error"), 1, "w8a8")
    assert found is not None
    assert (found.signal, found.hard, found.correlation) == ("error", "high", pytest.approx(1.0))
    assert trend(known, "error", 2, "w8a8") is None
    assert trend(videos([1.0] * 4, [0.1] * 4), "error", 1, "w8a8") is None


def test_the_first_step_is_compared_with_the_level_farthest_from_its_own() -> None:
    for begin, other in ((1, LEVELS[0]), (0, LEVELS[1])):
        how = Strengths("clip", "error", begin, LEVELS, (Cut(999.0, "high", (0.1,)),))
        for moved, level in ((0.01, 0), (0.5, 1)):
            mine = Adaptation(how, torch.device("cpu"))
            mine.begin(["x"])
            mine.level(999.0)
            assert mine.other == other.promoted
            one = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            assert mine.compared(one, one + moved**0.5) is (level != begin)
            mine.seen(one)
            assert mine.level(900.0) == LEVELS[level].promoted
            assert mine.other is None
            assert mine.as_data()[0]["steps"][0]["error"] == [pytest.approx(moved, rel=0.2)]


def test_quantiles_lie_on_lines() -> None:
    assert [quantile([1.0, 2.0, 4.0], share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert quantile([3.0], 0.7) == 3.0


def strengths(per: str = "clip", hard: str = "high", begin: int = 1) -> Strengths:
    found = (Cut(999.0, hard, (1.0,), 0.5), Cut(900.0, hard, (2.0,)))
    return Strengths(per, "gradient", begin, LEVELS, found, "a test")


def test_levels_round_trip_through_a_plan() -> None:
    mine = strengths()
    assert Strengths.of({"adaptive": mine.as_data()}) == mine
    assert Strengths.of({}) is None
    off = Strengths.of({"adaptive": {"note": "no calibration"}})
    assert off is not None
    assert not off.works
    assert off.describe() == ["adaptive: off, no calibration"]
    text = "\n".join(mine.describe())
    assert "level 1 where gradient >= 1 (rank correlation +0.50)" in text
    assert "level 1: 1 groups of call sites promoted, 2 ms a step, error 0.0001, 50.0 dB, until the signal is known" in text


@pytest.mark.parametrize("damage", [{"levels": 3}, {"cuts": [{"hard": "low", "at": []}]}, {"begin": 2}, {"levels": [{}]}])
def test_damaged_levels_are_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="damaged"):
        Strengths.of({"adaptive": {**strengths().as_data(), **damage}})


def test_levels_of_another_plan_are_refused() -> None:
    strengths().check(["a", "b"])
    with pytest.raises(PlanError, match="promotes a, which has no second kernel"):
        strengths().check(["b"])


def test_a_cut_goes_by_the_hardest_of_a_batch() -> None:
    high, low = Cut(None, "high", (1.0, 2.0)), Cut(None, "low", (2.0, 1.0))
    assert [high.level(values) for values in ([0.5], [0.5, 1.0], [3.0, 0.1])] == [0, 1, 2]
    assert [low.level(values) for values in ([2.5], [2.5, 2.0], [3.0, 0.1])] == [0, 1, 2]


def clean(gradient: float) -> torch.Tensor:
    """Latents [1, 1, 1, 1, 4] with a gradient of 4 where more than 1 is asked for, else of 0.8."""
    return torch.tensor([-1.0, 1.0, -1.0, 1.0] if gradient > 1 else [0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 1, 1, 4)


def run(how: Strengths, gradients: list[float]) -> list[int]:
    mine = Adaptation(how, torch.device("cpu"))
    mine.begin(["a prompt"])
    for number, gradient in enumerate(gradients):
        mine.level((999.0, 900.0, 800.0, 700.0, 600.0)[number])
        mine.seen(clean(gradient))
    (clip,) = mine.as_data()
    assert [row["step"] for row in clip["steps"]] == list(range(1, len(gradients) + 1))
    assert all(len(row["gradient"]) == 1 for row in clip["steps"])
    return [row["level"] for row in clip["steps"]]


def test_per_clip_the_first_step_decides() -> None:
    assert run(strengths(), [0, 2, 2, 2]) == [1, 0, 0, 0]
    assert run(strengths(), [2, 0, 0, 0]) == [1, 1, 1, 1]
    assert run(strengths(begin=0), [2, 0, 0]) == [0, 1, 1]
    assert run(strengths(hard="low", begin=0), [2, 0, 0]) == [0, 0, 0]


def test_per_step_the_last_but_one_decides() -> None:
    assert run(strengths("step"), [0, 2, 0, 2, 0]) == [1, 1, 0, 1, 0]


def test_a_new_clip_knows_nothing() -> None:
    mine = Adaptation(strengths(), torch.device("cpu"))
    for _ in range(2):
        mine.begin(["x"])
        assert mine.level(999.0) == LEVELS[1].promoted
        mine.seen(clean(0))
        assert mine.level(900.0) == LEVELS[0].promoted


def test_calibrations_keep_and_merge_what_videos_looked_like() -> None:
    one, two = (Calibration({"model": "m"}, {}, ((str(i), i),), (), tuple(videos([i + 1.0], [0.1]))) for i in range(2))
    assert Calibration.loads(one.dumps()) == one
    assert merge([one, two]).videos == one.videos + two.videos
    older = re.sub(r'"videos":.*?,"sites"', '"sites"', one.dumps())
    assert Calibration.loads(older).videos == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{enable: true}", r"unknown key 'enable' in adaptive; did you mean 'enabled'"),
        ("{per: clips}", r"adaptive.per: 'clips' is not 'clip' or 'step'; did you mean 'clip'"),
        ("{levels: [40]}", "needs two values"),
        ("{levels: [50, 40]}", "levels must rise"),
        ("{levels: [30, 40, 50]}", "3 levels need 2 quantiles, not 1"),
        ("{quantiles: [0.2, 0.8]}", "2 levels need 1 quantiles, not 2"),
        ("{thresholds: [0.3]}", "thresholds belong to one signal"),
        ("{levels: [30, 40, 50], signal: motion, hard: low, thresholds: [0.1, 0.2]}", "thresholds must fall"),
    ],
)
def test_profiles_say_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        parse_profile(f"{BASE}adaptive: {text}\n")
    assert "profile.yaml:4" in raised.value.message


def test_levels_of_a_profile() -> None:
    wish = parse_profile(f"{BASE}adaptive: {{enabled: true, levels: [35, 45]}}\n")
    assert wish.planned_psnr == 35.0
    assert parse_profile(f"{BASE}adaptive: {{levels: [35, 45]}}\n").planned_psnr == wish.quality.psnr
