"""Losses and schedules against values that follow from their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from recipes.tiny_shapes import losses, sampling, vae_train
from recipes.tiny_shapes.common import Options, Run
from recipes.tiny_shapes.nets import DENSE
from recipes.tiny_shapes.optim import Muon, Optimisers, orthogonalise, schedule
from recipes.tiny_shapes.rates import try_rates


class Straight(torch.nn.Module):
    """The exact velocity of a flow whose data is the single point `x0`: v = (x - x0) / t."""

    def __init__(self, x0: torch.Tensor) -> None:
        super().__init__()
        self.x0 = x0

    def forward(self, x, t, text, mode=DENSE):
        return (x - self.x0) / losses.spread(t)


@pytest.fixture
def point() -> torch.Tensor:
    return torch.randn(3, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_angle_field_leads_back_to_the_data(point):
    angle = torch.tensor([0.2, 0.8, 1.5])
    c, s = losses.spread(angle.cos()), losses.spread(angle.sin())
    x = c * point + s * torch.randn_like(point)
    field = losses.angle_field(Straight(point), x, angle, torch.zeros(3, 1, 1), DENSE)
    assert torch.allclose(c * x - s * field, point, atol=1e-5)


def test_consistency_direction_vanishes_only_for_a_consistent_student(point):
    """On an exact flow, student and teacher agree and F changes so that x0 stays: the direction is 0; otherwise it is not."""
    angle = torch.full((3,), 0.9)
    net, text = Straight(point), torch.zeros(3, 1, 1)
    c, s = losses.spread(angle.cos()), losses.spread(angle.sin())
    x = (c * point + s * torch.randn_like(point)).double().float()
    field = losses.angle_field(net, x, angle, text, DENSE)
    along = angle.cos() * angle.sin()
    _, tangent = torch.func.jvp(
        lambda a, b: losses.angle_field(net, a, b, text, DENSE), (x, angle), (losses.spread(along) * field, along)
    )
    residual = -(c * s) * x - tangent
    assert residual.abs().max() < 1e-4
    moved = losses.consistency_direction(field + 1, field, tangent, x, angle, 1.0)
    # Towards the teacher, and of unit size.
    assert (moved < 0).all()
    assert torch.allclose(moved.square().mean((1, 2, 3, 4)).sqrt(), torch.ones(3), atol=0.02)


def test_score_difference_is_scaled_and_finite(point):
    assert losses.dmd_direction(point, point - 2, point - 2).abs().max() == 0
    assert torch.allclose(losses.dmd_direction(point, point - 2, point), torch.ones_like(point))
    assert losses.dmd_direction(point, point * torch.nan, point).abs().max() == 0


def test_samplers_reach_the_data_of_a_straight_flow(point):
    net = Straight(point)

    def velocity(x, t):
        return net(x, t, None)

    noise = torch.randn_like(point)
    assert torch.allclose(sampling.euler_sample(velocity, noise, 7, 3.0), point, atol=1e-5)
    assert torch.allclose(sampling.rcm_sample(velocity, noise, 4), point, atol=1e-5)


def test_saturated_pixels_weigh_more():
    video = torch.zeros(1, 3, 1, 4, 4)
    video[:, 0, :, :2] = 1.0
    weight = vae_train.pixel_weights(video)
    assert weight.mean() == pytest.approx(1.0)
    assert (weight[..., :2, :] / weight[..., 2:, :]).unique().item() == pytest.approx(1 + vae_train.OBJECTS)
    assert vae_train.pixel_weights(video.mean(1, keepdim=True).expand(-1, 3, -1, -1, -1)).unique().item() == 1.0


def test_schedule_rises_holds_and_falls():
    assert schedule(0, 0.0, warmup=10) == pytest.approx(0.1)
    assert schedule(50, 0.4, warmup=10, hold=0.5) == 1.0
    assert schedule(50, 0.75, warmup=10, hold=0.5) == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert schedule(50, 1.0, warmup=10, hold=0.5) == pytest.approx(0.02)


def test_muon_steps_along_the_orthogonal_factor():
    g = torch.Generator().manual_seed(0)
    kernel = torch.nn.Parameter(torch.zeros(8, 4, 1, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=g)
    s = torch.linalg.svdvals(orthogonalise(kernel.grad.flatten(1)[None])[0])
    assert s.min() > 0.6
    assert s.max() < 1.3
    Muon([kernel], lr=0.1, weight_decay=0.0).step()
    moved = kernel.detach().flatten(1)
    factor = torch.linalg.svd(kernel.grad.flatten(1), full_matrices=False)
    exact = factor[0] @ factor[2]
    assert float((moved * exact).sum() / moved.norm() / exact.norm()) < -0.97
    assert moved.square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.2)


def test_the_rate_that_learns_is_chosen_and_its_weights_kept(tmp_path):
    """On a quadratic the first rate diverges and the last barely moves."""
    run = Run("trial", Options(tmp_path, minutes=1, smoke=True, device="cpu"))
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 5.0)

    def step(opt, rate):
        loss = (model.weight - 1).square().sum()
        loss.backward()
        opt.step(rate)
        return loss

    def build(rates):
        return Optimisers([], [model.weight], muon_lr=0, lr=rates[1], weight_decay=0.0)

    chosen = try_rates(run, model, ((0.0, 50.0), (0.0, 0.3), (0.0, 1e-4)), build, step, 40)
    assert chosen == (0.0, 0.3)
    assert model.weight.item() == pytest.approx(1.0, abs=0.3)
