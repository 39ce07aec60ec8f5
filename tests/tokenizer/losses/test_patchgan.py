import torch

from tokenizer.losses.patchgan import PatchGAN


def test_a_logit_sees_a_patch_of_70_pixels():
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = PatchGAN().eval()(images)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    rows = images.grad[0].abs().sum((0, 2)).nonzero()
    assert (rows.max() - rows.min() + 1).item() == 70
