"""Differentiable augmentation of what a discriminator sees (Zhao et al. 2020).

Every function takes images [B, 3, H, W] in [-1, 1] and uniform numbers in [0, 1), one [B] a
draw; image b is changed by the b-th numbers alone.
"""

import torch
from torch import Tensor

DRAWS = 7  # K: translation down and right, brightness, saturation, contrast, cutout down and right
TRANSLATION = 1 / 8  # largest shift, of a side
CUTOUT = 0.2  # side of the hole, of a side


def augment(images: Tensor, uniform: Tensor) -> Tensor:
    """All of them, one after the other: images [B, 3, H, W], draws [B, K] → [B, 3, H, W].

    Draws of ½ leave position and colours as they are; the hole is then in the middle.
    """
    down, right, *colours, hole_down, hole_right = uniform.unbind(1)
    return cut_out(jitter(translate(images, down, right), *colours), hole_down, hole_right)


def translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move by whole pixels, up to 1/8 of a side either way; zeros come in from outside."""
    for dim, draw in ((2, down), (3, right)):
        side = images.shape[dim]
        most = int(side * TRANSLATION + 0.5)
        source = torch.arange(side, device=images.device) + most
        source = source - _integer(draw, 2 * most + 1)[:, None]  # [B, H] or [B, W]
        source = source[:, None, :, None] if dim == 2 else source[:, None, None]
        inside = (source >= 0) & (source < side)
        moved = images.take_along_dim(source.clamp(0, side - 1), dim)
        images = moved.masked_fill(~inside, 0)
    return images


def jitter(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add −0.5 to 0.5 to all channels, scale each pixel's distance from its grey by 0 to 2, and
    that of all pixels from the image's mean by 0.5 to 1.5."""
    brightness, saturation, contrast = (
        draw[:, None, None, None] for draw in (brightness, saturation, contrast)
    )
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def cut_out(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Blank a rectangle of 0.2 of either side, whose centre may be anywhere in the image."""
    inside = []
    for side, draw in ((images.shape[2], down), (images.shape[3], right)):
        hole = int(side * CUTOUT + 0.5)
        # an even hole has its centre between two pixels, so that there is one place more
        start = _integer(draw, side + 1 - hole % 2) - hole // 2  # [B]
        distance = torch.arange(side, device=images.device) - start[:, None]
        inside.append((distance >= 0) & (distance < hole))  # [B, H], [B, W]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # [B, 1, H, W]
    return images.masked_fill(hole, 0)


def _integer(uniform: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1) → integers 0 … count − 1."""
    return (uniform * count).long().clamp(max=count - 1)  # for one that was rounded to 1
