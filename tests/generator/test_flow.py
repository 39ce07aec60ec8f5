from __future__ import annotations

import pytest
import torch

from generator import flow


def test_the_path_joins_data_and_noise():
    x0, noise = torch.randn(2, 3, 4)
    t = torch.tensor([0.0, 0.25, 1.0])
    expected = torch.stack([x0[0], 0.25 * noise[1] + 0.75 * x0[1], noise[2]])
    torch.testing.assert_close(flow.path(x0, noise, t), expected)


def test_the_paths_own_velocity_has_no_loss():
    x0, noise = torch.randn(2, 5, 4)
    t, step = torch.rand(5, dtype=torch.float64), 1e-6
    later, now = (flow.path(x0.double(), noise.double(), t + dt) for dt in (step, 0.0))
    assert flow.velocity_loss((later - now) / step, x0, noise).max() < 1e-12
    assert flow.velocity_loss(noise - x0, x0, noise).tolist() == [0.0] * 5


def test_the_loss_is_a_mean_over_channels():
    loss = flow.velocity_loss(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), torch.zeros(1, 2))
    assert loss.tolist() == [5.0]


def best_slope(t, s):
    """Of the velocity v = a·x of data N(0, s²): E[(ε − x_0)·x_t] / E[x_t²]."""
    return (t - (1 - t) * s * s) / (t * t + (1 - t) ** 2 * s * s)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_loss_of_a_linear_velocity_on_gaussian_data(t):
    """E‖a·x_t − (ε − x_0)‖² = a²(t² + (1−t)²s²) − 2a(t − (1−t)s²) + 1 + s²."""
    s, n = 0.6, 400_000
    generator = torch.Generator().manual_seed(0)
    x0 = s * torch.randn(n, 1, generator=generator)
    noise = torch.randn(n, 1, generator=generator)
    x = flow.path(x0, noise, torch.full((n,), t))
    best = best_slope(t, s)
    for a in (0.0, 1.0, best):
        expected = a * a * (t * t + (1 - t) ** 2 * s * s)
        expected += -2 * a * (t - (1 - t) * s * s) + 1 + s * s
        loss = flow.velocity_loss(a * x, x0, noise).mean()
        assert loss.item() == pytest.approx(expected, rel=0.01)
    # and no other slope does better
    curve = [flow.velocity_loss(a * x, x0, noise).mean() for a in (best - 0.1, best, best + 0.1)]
    assert curve[1] == min(curve)


def test_training_times_leave_out_zero():
    times = flow.training_times(torch.tensor([0.0, 0.5, 1.0])).tolist()
    assert times == pytest.approx([1e-5, 0.500005, 1.0], rel=1e-6)
