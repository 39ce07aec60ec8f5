from __future__ import annotations

import pytest
import torch

from generator import drawing
from generator.drawing import Drawer
from generator.solvers import METHODS, Solver


@pytest.fixture
def head(model):
    return model.head


@pytest.mark.parametrize("times_at_once", [1, 3, 100])
@torch.no_grad()
def test_prepared_velocities_are_the_heads_own(head, monkeypatch, times_at_once):
    """In whatever order they are asked for, and however many fit into memory at once."""
    x, condition = torch.randn(4, 6), torch.randn(4, 32)
    bytes_a_time = 4 * 4 * head.modulated_width
    monkeypatch.setattr(drawing, "MODULATION_BYTES", times_at_once * bytes_a_time)
    solver = Solver("heun", 7)
    velocity = Drawer(head, solver).velocity(condition)
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
    found = Drawer(head, solver).draw(noise, condition, unconditional, 2.5)
    torch.testing.assert_close(found, solver.solve(velocity, noise))


@torch.no_grad()
def test_guidance_of_one_is_the_conditional_branch(head):
    noise, condition, unconditional = torch.randn(4, 6), *torch.randn(2, 4, 32)
    drawer = Drawer(head, Solver(steps=5))
    alone = drawer.draw(noise, condition)
    assert torch.equal(alone, drawer.draw(noise, condition, unconditional, 1.0))
    nearly = drawer.draw(noise, condition, unconditional, 1.0 + 1e-6)
    torch.testing.assert_close(alone, nearly, atol=1e-4, rtol=0)


@pytest.mark.parametrize("setting", [True, False])
def test_times_are_embedded_in_float32_whatever_the_setting(head, setting):
    asked, products = [], torch.backends.cuda.matmul
    head.time.register_forward_pre_hook(lambda *_: asked.append(products.allow_tf32))
    before = products.allow_tf32
    try:
        products.allow_tf32 = setting
        Drawer(head, Solver())
        assert (asked, products.allow_tf32) == ([False], setting)
    finally:
        products.allow_tf32 = before
