from __future__ import annotations

import pytest
import torch
from torch import nn

from tokenizer.losses.patchgan import PatchGAN


@pytest.fixture(scope="module")
def discriminator():
    torch.manual_seed(0)
    return PatchGAN().eval()


def test_weights_begin_small_and_centred(discriminator):
    """Means and deviations of n draws lie within four of their own deviations."""
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            centre = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            n = module.weight.numel()
            assert module.weight.mean().item() == pytest.approx(centre, abs=4 * 0.02 / n**0.5)
            assert module.weight.std().item() == pytest.approx(0.02, rel=4 / (2 * n) ** 0.5)
        if isinstance(module, nn.BatchNorm2d):
            assert not module.bias.any()


def test_the_usual_size(discriminator):
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633


def test_a_logit_sees_a_patch_of_70_pixels(discriminator):
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(images)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    rows = images.grad[0].abs().sum((0, 2)).nonzero()
    assert (rows.max() - rows.min() + 1).item() == 70


@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_layers_see_smaller_patches(layers):
    logits = PatchGAN(width=8, layers=layers)(torch.randn(2, 3, 32, 64))
    side = 2**layers
    assert logits.shape == (2, 1, 32 // side - 2, 64 // side - 2)
