"""PSNR and SSIM, one number an image.

Values beyond [-1, 1] are clamped first, as they are when an image is saved.

Shapes: B batch, H W pixels.
"""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: [B, 3, H, W] in [-1, 1] twice → [B]."""
    error = images.clamp(-1, 1).float() - reference.clamp(-1, 1).float()
    return 10 * (4 / error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10)).log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window of σ 1.5, 11 pixels wide), the mean
    over windows and colours: [B, 3, H, W] in [-1, 1] twice, H W ≥ 11 → [B]."""
    # in [0, 1], because the measure compares means too, whose ratio depends on where black is
    images, reference = ((x.clamp(-1, 1).float() + 1) / 2 for x in (images, reference))
    found = structural_similarity_index_measure(images, reference, data_range=1.0, reduction="none")
    return torch.as_tensor(found).reshape(len(images))
