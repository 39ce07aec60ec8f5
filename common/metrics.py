"""Measures of images.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from torch import Tensor


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image: [B, 3, H, W] in [-1, 1] twice → [B].

    Values beyond [-1, 1] are clamped first, as they are when an image is saved.
    """
    error = images.clamp(-1, 1).float() - reference.clamp(-1, 1).float()
    return 10 * (4 / error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10)).log10()
