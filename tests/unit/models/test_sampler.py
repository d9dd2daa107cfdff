"""Samplers: schedules and updates against independent implementations and exact solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from turbort.errors import InputError
from turbort.models.config import DitConfig, Preset
from turbort.models.sampler import Euler, Noise, Rcm, Sampler, build_sampler
from turbort.models.unipc import UniPC
from turbort.models.wan_dit import WanDit

SHAPE = (4, 2, 3, 3)


def field(x: Tensor, t: float) -> Tensor:
    """A velocity that bends: no update rule is exact on it."""
    return torch.tanh(1.3 * x + t / 700) - 0.4 * x + t / 1500


def final(sampler: Sampler, velocity: Callable[[Tensor, float], Tensor] = field, seed: int = 0) -> Tensor:
    return list(sampler.steps(velocity, Noise([seed], SHAPE)))[-1].x


def test_rcm_schedule_is_that_of_the_paper() -> None:
    angles = [math.atan(80.0), 1.5, 1.4, 1.0]
    assert Rcm(4).sigmas == pytest.approx([math.tan(a) / (1 + math.tan(a)) for a in angles] + [0.0], rel=1e-12)
    assert Rcm(1, sigma_max=200.0).times == pytest.approx((1000 * 200 / 201,))
    assert Rcm(4).times == pytest.approx((987.654, 933.782, 852.895, 608.979), abs=2e-3)


@pytest.mark.parametrize("steps", [0, 5])
def test_rcm_refuses_steps_without_a_schedule(steps: int) -> None:
    with pytest.raises(InputError, match="1 to 4 steps"):
        Rcm(steps)


def in_float64(velocity: Callable[[Tensor, float], Tensor], seed: int, shape: tuple[int, ...]) -> Tensor:
    """The four rCM steps with the state in float64, as TurboDiffusion keeps it."""
    noise = Noise([seed], shape)
    x = noise().double() * Rcm(4).sigmas[0]
    for t, then in pairwise(Rcm(4).sigmas):
        x = (1 - then) * (x - t * velocity(x, 1000 * t).double()) + then * noise().double()
    return x


def relative(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).norm() / y.double().norm())


def test_rcm_state_in_float32_costs_less_than_the_models_own_rounding() -> None:
    torch.manual_seed(0)
    dit = WanDit(DitConfig(dim=256, ffn_dim=512, heads=2, layers=3, text_dim=16, text_len=8))
    torch.nn.init.normal_(dit.head.head.weight, std=0.06)
    context, shape = torch.randn(1, 8, 16), (16, 3, 8, 8)

    @torch.no_grad()
    def model(dtype: torch.dtype) -> Callable[[Tensor, float], Tensor]:
        copy = deepcopy(dit)
        for name, parameter in copy.named_parameters():
            if not any(part in name for part in WanDit.fp32):
                parameter.data = parameter.data.to(dtype)
        text = copy.encode_text(context.to(dtype))
        return torch.no_grad()(lambda x, t: copy(x.to(dtype), torch.tensor([t]), text).float())

    def run(velocity: Callable[[Tensor, float], Tensor]) -> Tensor:
        return list(Rcm(4).steps(velocity, Noise([3], shape)))[-1].x

    exact, rounded = model(torch.float32), model(torch.bfloat16)
    assert relative(run(exact), in_float64(exact, 3, shape)) < 1e-6
    of_state = relative(run(rounded), in_float64(rounded, 3, shape))
    of_model = relative(run(rounded), run(exact))
    print(f"float32 state {of_state:.1e}, bfloat16 model {of_model:.1e}")
    assert of_state < of_model


def test_rcm_ode_follows_the_predicted_noise() -> None:
    x0 = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    noise = Noise([0], SHAPE)()
    sampler = Rcm(4, ode=True)
    assert torch.allclose(
        final(sampler, lambda x, t: noise - x0), noise * sampler.sigmas[0] - sampler.sigmas[0] * (noise - x0), atol=1e-6
    )


def test_a_sample_does_not_depend_on_its_batch() -> None:
    both, one = Noise([5, 6], SHAPE), Noise([6], SHAPE)
    for _ in range(3):
        assert torch.equal(both()[1:], one())
    assert not torch.equal(Noise([5], SHAPE)(), Noise([6], SHAPE)())


def test_iteration_can_stop_between_steps() -> None:
    calls: list[float] = []

    def counted(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return x

    steps = UniPC(5).steps(counted, Noise([0], SHAPE))
    next(steps)
    next(steps)
    steps.close()
    assert len(calls) == 2


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_euler_matches_diffusers(steps: int, shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    other.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    sampler = Euler(steps, shift=shift)
    assert torch.allclose(torch.tensor(sampler.times), other.timesteps, rtol=1e-6)
    x = Noise([0], SHAPE)()
    for t in other.timesteps:
        x = other.step(field(x, float(t)), t, x).prev_sample
    assert torch.allclose(final(sampler), x, atol=2e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_unipc_matches_diffusers(steps: int, shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    other = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    other.set_timesteps(steps)
    sampler = UniPC(steps, shift=shift)
    assert sampler.times == tuple(float(t) for t in other.timesteps)
    assert torch.allclose(torch.tensor(sampler.sigmas), other.sigmas, atol=1e-7)
    x = Noise([0], SHAPE)()
    for t in other.timesteps:
        x = other.step(field(x, float(t)), t, x).prev_sample
    y = final(sampler)
    assert (y - x).norm() / x.norm() < 2e-5


@pytest.mark.parametrize("sampler", [Euler(3), UniPC(3), Rcm(3)])
def test_straight_paths_are_followed_exactly(sampler: Sampler) -> None:
    x0 = torch.full((1, *SHAPE), 0.7)

    def straight(x: Tensor, t: float) -> Tensor:
        sigma = sampler.sigmas[sampler.times.index(t)]
        return (x - x0) / sigma

    assert torch.allclose(final(sampler, straight), x0, atol=1e-5)


def test_unipc_is_second_order() -> None:
    """Against a fine Euler run of dx/dt = field: four times the steps leave far less than a quarter of the error."""
    exact = final(Euler(4000), lambda x, t: field(x, round(t, 6)))

    def error(steps: int) -> float:
        return float((final(UniPC(steps, shift=1.0)) - exact).norm())

    assert error(40) < error(10) / 3


def test_a_sampler_can_be_used_again() -> None:
    sampler = UniPC(4)
    assert torch.equal(final(sampler), final(sampler))


@pytest.mark.parametrize(("name", "kind"), [("rcm", Rcm), ("euler", Euler), ("unipc", UniPC)])
def test_build(name: str, kind: type[Sampler]) -> None:
    sampler = build_sampler(name, Preset(steps=3, shift=2.0))  # type: ignore[arg-type]
    assert type(sampler) is kind
    assert len(sampler) == 3
    assert not isinstance(sampler, Rcm) or sampler.sigmas[0] == pytest.approx(80 / 81)


def test_build_refuses_unknown_names_and_no_steps() -> None:
    with pytest.raises(InputError, match="did you mean 'unipc'"):
        build_sampler("unipcc", Preset(steps=3))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1 step"):
        build_sampler("euler", Preset(steps=0))
