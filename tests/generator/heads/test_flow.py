import pytest
import torch

from generator.heads import flow
from generator.solvers import METHODS, Solver


@pytest.fixture
def head(model):
    return model.head


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_loss_of_a_linear_velocity_on_gaussian_data(head, monkeypatch, t):
    """E‖a·x_t − (ε − x_0)‖² = a²(t² + (1−t)²s²) − 2a(t − (1−t)s²) + 1 + s²."""
    s, n = 0.6, 400_000
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, n, 1, generator=generator)
    x0 = s * x0
    for a in (0.0, 0.5, 1.0):
        monkeypatch.setattr(head, "forward", lambda x, t, condition, a=a: a * x)
        expected = a * a * (t * t + (1 - t) ** 2 * s * s)
        expected += -2 * a * (t - (1 - t) * s * s) + 1 + s * s
        loss = head.loss(x0, x0, torch.full((n,), t), noise).mean()
        assert loss.item() == pytest.approx(expected, rel=0.01)


@torch.no_grad()
def test_the_time_embedding_is_float32_under_autocast(head):
    t = torch.tensor([0.5, 0.5001])
    expected = head.time(t)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.time(t), expected)
        assert head.token_in(torch.randn(2, 6)).dtype == torch.bfloat16


@pytest.mark.parametrize("times_at_once", [1, 3, 100])
@torch.no_grad()
def test_prepared_velocities_are_the_heads_own(head, monkeypatch, times_at_once):
    """In whatever order they are asked for, and however many fit into memory at once."""
    x, condition = torch.randn(4, 6), torch.randn(4, 32)
    bytes_a_time = 4 * 4 * (2 * 3 + 2) * 16
    monkeypatch.setattr(flow, "MODULATION_BYTES", times_at_once * bytes_a_time)
    solver = Solver("heun", 7)
    velocity = head.velocity(condition, solver, head.embed_times(solver))
    assert solver.asked[-1] == 0.0
    for t in (*solver.asked, *solver.asked[::-1]):
        expected = head(x, torch.full((4,), t), condition)
        torch.testing.assert_close(velocity(x, t), expected)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_guided_velocity_of_the_head_is_followed(head, method):
    noise, condition, unconditional = torch.randn(4, 6), *torch.randn(2, 4, 32)

    def velocity(x, t):
        time = torch.full((4,), t)
        c, u = head(x, time, condition), head(x, time, unconditional)
        return u + 2.5 * (c - u)

    solver = Solver(method, 5)
    found = head.sample(noise, condition, unconditional, 2.5, solver, head.embed_times(solver))
    torch.testing.assert_close(found, solver.solve(velocity, noise))
