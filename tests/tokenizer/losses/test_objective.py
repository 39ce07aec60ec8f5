from dataclasses import replace

import pytest
import torch
from torch import nn

from common.seeding import BatchDraws
from tokenizer.losses.augment import DRAWS, augment
from tokenizer.losses.dino import CROP_DRAWS
from tokenizer.losses.objective import Objective, Reconstruction, adaptive_weight, hinge_loss
from tokenizer.posterior import Posterior


def test_the_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 3.0 / 3))


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


def plain(**params):
    """An objective without pretrained networks."""
    return Objective(**{"perceptual_weight": 0, "semantic_loss_w": 0, **params})


def draws(seed=0):
    return BatchDraws(torch.Generator().manual_seed(seed))


@pytest.fixture
def batch():
    """Two images, their reconstruction by a linear decoder, and its weight."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.tensor([[0.1, 0.2, 0.3]]))
    columns = torch.randn(2, 3, 32, 48)
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    fake = torch.einsum("oc,bchw->bohw", weight, columns).expand(2, 3, 32, 48)
    semantics = torch.randn(2, 768, 2, 3, requires_grad=True)
    posterior = Posterior(torch.randn(2, 4, 6), 2.5)
    return Reconstruction(images, fake, semantics, posterior, draws(3)), weight


def pixels(fake):
    return (fake.target - fake.images).abs().sum() / len(fake.target)


def test_the_adversarial_term(batch):
    fake, weight = batch
    objective = plain(kl_weight=0.0, disc_type="patchgan", disc_weight=0.25, disc_start=0)
    objective.discriminator = Judge()
    loss, parts = objective.autoencoder_loss(fake, weight, 0)
    adversarial = -0.5 * fake.images.sum() / 2
    factor = adaptive_weight(pixels(fake), adversarial, weight)
    torch.testing.assert_close(parts["d_weight"], factor)
    torch.testing.assert_close(loss, pixels(fake) + 0.25 * factor * adversarial)
    loss.backward()
    assert objective.discriminator.factor.grad is None
    assert objective.discriminator.factor.requires_grad
    assert weight.grad is not None


@pytest.fixture(scope="module")
def whole(pretrained_folder):
    """The paper's objective, with its terms from the first steps on."""
    torch.manual_seed(0)
    starts = {"disc_start": 1, "semantic_iter_start": 2}
    return Objective(**starts, weights_dir=str(pretrained_folder))


def test_the_terms_of_the_paper(whole, batch):
    """Rec = Σ(|x − x̂| + LPIPS), KL, alignment and adversary, each from its step on."""
    fake, weight = batch
    expected = (
        pixels(fake) + fake.target[0].numel() * whole.perceptual(fake.images, fake.target).mean()
    )
    kl = 0.01 * fake.posterior.kl().mean()
    found = []
    for step in range(3):
        found.append(whole.autoencoder_loss(replace(fake, draws=draws(3)), weight, step))
    torch.testing.assert_close(found[0][1]["rec"], expected.detach())
    torch.testing.assert_close(found[0][0], expected + kl)

    at = draws(3)
    changed = augment(fake.images, at.uniform(2, DRAWS))
    adversarial = -whole.discriminator(changed, at.shared(CROP_DRAWS)).mean()
    factor = adaptive_weight(expected, adversarial, weight)
    total = expected + kl + 0.5 * factor * adversarial
    # each use of spectral normalisation moves its estimates a little
    torch.testing.assert_close(found[1][0], total, rtol=1e-2, atol=0.0)

    semantic = whole.alignment.loss(fake.semantics, fake.target)
    terms = found[2][1]
    torch.testing.assert_close(terms["semantic"], semantic.detach())
    sum_of_terms = terms["rec"] + kl + 0.5 * terms["d_weight"] * terms["adversarial"]
    torch.testing.assert_close(found[2][0], sum_of_terms + 5 * semantic)
    assert "semantic" not in found[1][1] and "adversarial" not in found[0][1]


def test_gradients_reach_what_is_trained_alone(whole, batch):
    fake, weight = batch
    whole.autoencoder_loss(fake, weight, 2)[0].backward()
    assert weight.grad is not None and fake.semantics.grad is not None
    assert all(p.grad is None for p in whole.parameters())
    whole.discriminator_loss(fake)[0].backward()
    assert all(p.grad is not None for p in whole.discriminator.parameters())
    assert {name.split(".")[1] for name in whole.state_dict()} == {"heads"}  # no frozen network
