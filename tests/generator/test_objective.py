import pytest
import torch

from common.seeding import BatchDraws
from generator.objective import Draws, token_losses


def rows(rank=0, world=1):
    return BatchDraws(torch.Generator().manual_seed(0), rank, world)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 5, 6, generator=generator)
    return tokens, torch.tensor([0, 4, 2]), Draws.random(tokens, rows(), 2, 0.1, 4)


def test_draws():
    """Moments of U(0, 1) and N(0, 1), and no draw of a token twice."""
    draws = Draws.random(torch.zeros(4000, 4, 6), rows(), 3, 0.1, 2)
    assert draws.shift == 3 and draws.t.shape == (32000,) and draws.noise.shape == (32000, 6)
    assert draws.drop.float().mean().item() == pytest.approx(0.1, abs=0.02)
    for values, mean, square in ((draws.t, 1 / 2, 1 / 3), (draws.noise, 0, 1)):
        assert values.mean().item() == pytest.approx(mean, abs=0.01)
        assert values.square().mean().item() == pytest.approx(square, abs=0.02)
    assert draws.noise.view(2, -1).corrcoef()[0, 1].item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("world", [2, 3])
def test_each_process_draws_rows_of_the_whole_batch(world):
    whole = Draws.random(torch.zeros(6, 4, 5), rows(), 0, 0.5, 3)
    for rank in range(world):
        share = torch.zeros(6 // world, 4, 5)
        draws = Draws.random(share, rows(rank, world), 0, 0.5, 3)
        assert torch.equal(draws.drop, whole.drop[rank::world])
        mine = slice(rank, None, world)
        assert torch.equal(draws.t.view(3, -1, 4), whole.t.view(3, 6, 4)[:, mine])
        assert torch.equal(draws.noise.view(3, -1, 4, 5), whole.noise.view(3, 6, 4, 5)[:, mine])


def test_the_loss_is_float32_under_autocast(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        half = token_losses(model, *batch)
    assert half.dtype == torch.float32
    whole = token_losses(model, *batch)
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half.mean(), whole.mean(), rtol=2e-2, atol=0)
