import pytest
import torch
from torch import nn

from tokenizer.losses.patchgan import PatchGAN


def test_weights_begin_small_and_centred():
    """Means and deviations of n draws lie within four of their own deviations."""
    torch.manual_seed(0)
    for module in PatchGAN().modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            centre = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            n = module.weight.numel()
            assert module.weight.mean().item() == pytest.approx(centre, abs=4 * 0.02 / n**0.5)
            assert module.weight.std().item() == pytest.approx(0.02, rel=4 / (2 * n) ** 0.5)
        if isinstance(module, nn.BatchNorm2d):
            assert not module.bias.any()


def test_a_logit_sees_a_patch_of_70_pixels():
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = PatchGAN().eval()(images)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    rows = images.grad[0].abs().sum((0, 2)).nonzero()
    assert (rows.max() - rows.min() + 1).item() == 70
