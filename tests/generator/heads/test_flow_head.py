from __future__ import annotations

import math

import pytest
import torch

from generator.heads import flow_head as head


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


@torch.no_grad()
def test_the_time_embedding_is_float32_under_autocast(flow_head):
    t = torch.tensor([0.5, 0.5001])
    expected = flow_head.time(t)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow_head.time(t), expected)
        assert flow_head.token_in(torch.randn(2, 6)).dtype == torch.bfloat16


def test_the_loss_is_that_of_the_path(flow_head):
    x0, noise = torch.randn(2, 4, 6)
    condition, uniform = torch.randn(4, 32), torch.rand(4)
    t = 1e-5 + (1 - 1e-5) * uniform
    x = t[:, None] * noise + (1 - t)[:, None] * x0
    expected = (flow_head(x, t, condition) - (noise - x0)).square().mean(1)
    torch.testing.assert_close(flow_head.loss(x0, condition, uniform, noise), expected)
