from __future__ import annotations

import pytest
import torch

from generator.model import Generator, GeneratorConfig
from generator.objective import Draws, training_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 5, 6, generator=generator)
    return tokens, torch.tensor([0, 4, 2]), Draws.random(tokens, generator, shift=2)


@torch.no_grad()
def test_the_loss_by_hand(model, batch):
    """Column by column, draw by draw."""
    tokens, labels, draws = batch
    draws.drop.copy_(torch.tensor([False, True, False]))
    hidden = model.hidden(tokens, model.read_classes(torch.tensor([0, model.no_class, 2])), shift=2)
    expected = torch.zeros(5)
    t, noise = draws.t.view(4, 3, 5), draws.noise.view(4, 3, 5, 6)
    for k in range(4):
        for b in range(3):
            for i in range(5):
                drawn = t[k, b, i, None], noise[k, b, i, None]
                loss = model.head.loss(tokens[b, i, None], hidden[b, i, None], *drawn)
                expected[i] += loss[0] / 12
    torch.testing.assert_close(training_loss(model, tokens, labels, draws), expected)


def test_an_untrained_model_loses_the_paths_velocity(batch):
    """Its velocity is zero."""
    tokens, labels, draws = batch
    model = Generator(GeneratorConfig(32, 1, 4, 6, 5, head_width=16, head_depth=2))
    loss = training_loss(model, tokens, labels, draws)
    target = draws.noise - tokens.flatten(0, 1).repeat(4, 1)
    torch.testing.assert_close(loss.mean(), target.square().mean())


def test_no_vector_is_made_from_its_own_column_or_later_ones(model, batch):
    tokens, labels, _ = batch
    tokens = tokens.requires_grad_()
    hidden = model.hidden(tokens[:, :-1], model.read_classes(labels))
    hidden[:, 2].sum().backward()
    assert tokens.grad[:, :2].any() and not tokens.grad[:, 2:].any()


def test_draws():
    tokens = torch.zeros(4000, 4, 6)
    draws = Draws.random(
        tokens, torch.Generator().manual_seed(0), shift=3, drop_probability=0.1, repeats=2
    )
    assert draws.shift == 3
    assert draws.drop.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert draws.t.shape == (32000,) and draws.noise.shape == (32000, 6)
    # moments of U(0, 1) and N(0, 1)
    assert draws.t.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert draws.t.square().mean().item() == pytest.approx(1 / 3, abs=0.01)
    assert draws.noise.mean().item() == pytest.approx(0, abs=0.01)
    assert draws.noise.square().mean().item() == pytest.approx(1, abs=0.02)
    again = Draws.random(tokens, torch.Generator().manual_seed(0), repeats=2)
    assert torch.equal(again.noise, draws.noise)


def test_classes_are_never_or_always_dropped():
    tokens, generator = torch.zeros(64, 1, 6), torch.Generator().manual_seed(0)
    for probability in (0.0, 1.0):
        drop = Draws.random(tokens, generator, drop_probability=probability).drop
        assert drop.float().mean().item() == probability
