from __future__ import annotations

import math

import pytest
import torch

from generator import flow, head


@pytest.fixture
def flow_head(model):
    return model.head


def test_sinusoids():
    """Cosines before sines, of t times falling frequencies from 1 towards 1/10000."""
    found = head.sinusoids(torch.tensor([0.5, 1.0]), channels=4)
    slow = 10000**-0.5
    expected = [
        [math.cos(0.5), math.cos(0.5 * slow), math.sin(0.5), math.sin(0.5 * slow)],
        [math.cos(1.0), math.cos(slow), math.sin(1.0), math.sin(slow)],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert head.sinusoids(torch.rand(3)).shape == (3, 256)
    assert head.sinusoids(torch.rand(3).bfloat16()).dtype == torch.float32


@torch.no_grad()
def test_a_block_by_hand(flow_head):
    """Modulations come in the order shift, scale, gate; a closed gate leaves the input."""
    block = flow_head.blocks[0]
    x, (shift, scale, gate) = torch.randn(3, 16), torch.randn(3, 3, 16)
    y = block.norm(x) * (1 + scale) + shift
    y = block.fc2(torch.nn.functional.silu(block.fc1(y)))
    torch.testing.assert_close(block(x, torch.cat([shift, scale, gate], 1)), x + gate * y)
    assert torch.equal(block(x, torch.cat([shift, scale, 0 * gate], 1)), x)


@pytest.mark.parametrize("times_at_once", [1, 3, 100])
@torch.no_grad()
def test_prepared_velocities_are_the_heads_own(flow_head, monkeypatch, times_at_once):
    """In whatever order they are asked for, and however many fit into memory at once."""
    x, condition = torch.randn(4, 6), torch.randn(4, 32)
    monkeypatch.setattr(head, "MODULATION_BYTES", times_at_once * 4 * 4 * flow_head.modulated_width)
    times = flow.euler_times(7)
    velocity = flow_head.velocity(condition, times)
    for t in (*times, *times[::-1]):
        expected = flow_head(x, torch.full((4,), t), condition)
        torch.testing.assert_close(velocity(x, t), expected)


@torch.no_grad()
def test_sampling_follows_the_velocity(flow_head):
    noise, condition, unconditional = torch.randn(4, 6), *torch.randn(2, 4, 32)
    x = noise
    for i in range(5, 0, -1):
        t = torch.full((4,), i / 5)
        c, u = flow_head(x, t, condition), flow_head(x, t, unconditional)
        x = x - (u + 2.5 * (c - u)) / 5
    torch.testing.assert_close(flow_head.sample(noise, condition, unconditional, 2.5, 5), x)


@torch.no_grad()
def test_guidance_of_one_is_the_conditional_branch(flow_head):
    noise, condition, unconditional = torch.randn(4, 6), *torch.randn(2, 4, 32)
    alone = flow_head.sample(noise, condition, steps=5)
    guided = flow_head.sample(noise, condition, unconditional, 1.0, 5)
    nearly = flow_head.sample(noise, condition, unconditional, 1.0 + 1e-6, 5)
    assert torch.equal(alone, guided)
    torch.testing.assert_close(alone, nearly, atol=1e-4, rtol=0)


def test_the_loss_is_that_of_the_path(flow_head):
    x0, noise = torch.randn(2, 4, 6)
    condition, uniform = torch.randn(4, 32), torch.rand(4)
    t = 1e-5 + (1 - 1e-5) * uniform
    x = t[:, None] * noise + (1 - t)[:, None] * x0
    expected = (flow_head(x, t, condition) - (noise - x0)).square().mean(1)
    torch.testing.assert_close(flow_head.loss(x0, condition, uniform, noise), expected)
