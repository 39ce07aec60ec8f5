import math

import pytest
import torch

from common.seeding import BatchDraws
from tokenizer.posterior import Posterior

STD = 2.5


def clamped_normal_moments(sigma: float, bound: float) -> tuple[float, float]:
    """Second and fourth moment of N(0, σ²) clamped to [−bound, bound]."""
    a = bound / sigma
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    inside = math.erf(a / math.sqrt(2))
    second = sigma**2 * (inside - 2 * a * density) + bound**2 * (1 - inside)
    fourth = sigma**4 * (3 * inside - 2 * (a**3 + 3 * a) * density) + bound**4 * (1 - inside)
    return second, fourth


def test_an_image_has_one_scale_from_a_clamped_normal_distribution(generator):
    """Were the scale drawn for every value, all images would have the same mean square."""
    mean = torch.full((20000, 16, 16), 3.0)
    spread = (Posterior(mean, STD).sample(BatchDraws(generator)) - mean).square().mean((1, 2))
    second, fourth = clamped_normal_moments(STD / 0.8, STD)
    assert spread.mean().item() == pytest.approx(second, rel=0.02)
    assert Posterior(torch.zeros(1, 1, 1), STD).noise_variance == pytest.approx(second)
    assert spread.square().mean().item() == pytest.approx(fourth * (1 + 2 / 256), rel=0.03)
    assert spread.max() < STD**2 * 1.5


def test_shares_of_a_batch_have_the_noise_of_the_whole():
    mean = torch.randn(6, 4, 5)
    whole = Posterior(mean, STD).sample(BatchDraws(torch.Generator().manual_seed(1)))
    for rank in range(3):
        draws = BatchDraws(torch.Generator().manual_seed(1), rank, 3)
        assert torch.equal(Posterior(mean[rank::3], STD).sample(draws), whole[rank::3])
