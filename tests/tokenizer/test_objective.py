from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common.errors import UserError
from tokenizer.objective import Objective, adaptive_weight, hinge_loss, vanilla_loss
from tokenizer.posterior import Posterior


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 3.0 / 3))


def test_vanilla_loss_is_the_cross_entropy_of_real_against_fake():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.0, 3.0])
    expected = sum(-math.log(1 / (1 + math.exp(-x))) for x in (2.0, -1.0)) / 2
    expected += sum(-math.log(1 - 1 / (1 + math.exp(-x))) for x in (0.0, 3.0)) / 2
    assert vanilla_loss(real, fake).item() == pytest.approx(0.5 * expected)


@pytest.mark.parametrize(("slope", "expected"), [(0.5, 10 / (1 + 1e-4)), (0.0, 1e4), (1e-6, 1e4)])
def test_the_adaptive_weight_of_a_linear_decoder(slope, expected):
    """y = W·x; the reconstruction's gradient is (6, 8), the adversarial one slope · (2, 0)."""
    weight = nn.Parameter(torch.zeros(2))
    y = weight * 2
    found = adaptive_weight(3 * y[0] + 4 * y[1], slope * y[0], weight)
    assert found.item() == pytest.approx(expected)
    assert not found.requires_grad
    y.sum().backward()  # the graph is still there


class Judge(nn.Module):
    """A discriminator of one parameter: each image's sum, times it."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        return self.factor * images.sum((1, 2, 3))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.tensor([[0.1, 0.2, 0.3]]))
    columns = torch.randn(2, 3, 4, 8)
    images = torch.randn(2, 3, 4, 8)
    fake = torch.einsum("oc,bchw->bohw", weight, columns).expand(2, 3, 4, 8)
    return images, fake, Posterior(torch.randn(2, 4, 6), 2.5), weight


def test_losses_are_summed_over_an_image_and_averaged_over_the_batch(batch):
    images, fake, posterior, weight = batch
    objective = Objective(pixel_weight=2.0, kl_weight=0.1, disc_type="none")
    loss = objective.autoencoder_loss(images, fake, posterior, weight, step=10**9)
    rec = 2.0 * (images - fake).abs().sum() / 2
    kl = 0.5 * posterior.mean.square().sum() / 2
    assert loss.terms.keys() == {"total", "rec", "kl"}
    torch.testing.assert_close(loss.terms["rec"], rec.detach())
    torch.testing.assert_close(loss.terms["kl"], kl)
    torch.testing.assert_close(loss.total, rec + 0.1 * kl)


@pytest.mark.parametrize(("step", "takes_part"), [(0, False), (5000, False), (5001, True)])
def test_the_adversary_waits_for_its_first_step(batch, step, takes_part):
    objective = Objective()
    assert objective.adversarial(step) is takes_part
    objective.discriminator = Judge()
    loss = objective.autoencoder_loss(*batch, step=step)
    assert ("adversarial" in loss.terms) is takes_part


def test_the_adversarial_term(batch):
    images, fake, _, weight = batch
    objective = Objective(kl_weight=0.0, disc_weight=0.25, disc_start=0)
    objective.discriminator = Judge()
    loss = objective.autoencoder_loss(*batch, step=0)
    adversarial = -0.5 * fake.sum() / 2
    factor = adaptive_weight(rec(images, fake), adversarial, weight)
    torch.testing.assert_close(loss.terms["d_weight"], factor)
    torch.testing.assert_close(loss.total, rec(images, fake) + 0.25 * factor * adversarial)
    loss.total.backward()
    assert objective.discriminator.factor.grad is None
    assert objective.discriminator.factor.requires_grad
    assert weight.grad is not None


def rec(images, fake):
    return (images - fake).abs().sum() / len(images)


def test_the_discriminator_learns_and_the_autoencoder_does_not(batch):
    images, fake, _, weight = batch
    objective = Objective(disc_loss="hinge")
    objective.discriminator = Judge()
    loss = objective.discriminator_loss(images, fake)
    logits = [0.5 * x.sum((1, 2, 3)) for x in (images, fake)]
    torch.testing.assert_close(loss.total, hinge_loss(*logits))
    loss.total.backward()
    assert objective.discriminator.factor.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"perceptual_weight": 1.0}, "perceptual_weight: found 1.0"),
        ({"semantic_loss_w": 5.0}, "semantic_loss_w: found 5.0"),
        ({"disc_loss": "wasserstein"}, "disc_loss: found 'wasserstein', expected one of hinge"),
        ({"disc_type": "dino"}, "disc_type: found 'dino', expected one of patchgan, none"),
    ],
)
def test_unknown_terms_are_named(params, message):
    with pytest.raises(UserError, match=f"lossconfig.params.{message}"):
        Objective(**params)
