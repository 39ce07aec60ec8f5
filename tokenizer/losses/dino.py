"""DINO discriminator: heads on the features of a frozen DINO (after Sauer et al. 2023, StyleGAN-T).

The frozen network uses exact GELU, as DINO was trained; the released code uses its tanh form.

Shapes: B batch, H W pixels, D width of DINO, N patches, F features (5).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from common.pretrained.frozen import Frozen, embed, imagenet_scale, vision_transformer

SIDE = 224  # pixels that DINO was trained on
BLOCKS = (3, 6, 9, 12)  # whose output is judged, beside the input of the first
KERNEL = 9
GROUP = 8  # images that share the statistics of a norm
CROP_DRAWS = 3  # whether to crop, how far down, how far right


class DinoDiscriminator(nn.Module):
    """Judges every patch at five depths: images [B, 3, H, W] in [-1, 1] → logits [B, F·N].

    Only the heads are trained; gradients reach the images through the frozen network, whose weights
    lie in `weights_dir`. The norms share statistics within about 8 neighbouring images, so that
    real and false images must pass one after the other. `uniform` as in `to_square`.
    """

    def __init__(self, weights_dir: str | None = None) -> None:
        super().__init__()
        transformer = vision_transformer("dino", weights_dir)
        self.trunk = Frozen(_Features(transformer))
        self.heads = nn.ModuleList(_head(transformer.embed_dim) for _ in range(1 + len(BLOCKS)))

    def forward(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        features = self.trunk(to_square(imagenet_scale(images), uniform))  # F times [B, D, N]
        logits = [head(x).squeeze(1) for head, x in zip(self.heads, features, strict=True)]
        return torch.cat(logits, 1)


def to_square(images: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Images [B, 3, H, W] → [B, 3, 224, 224], all in the same way: a crop where both sides exceed
    224 and the first of `uniform` [3], in [0, 1), is below ½, at the place that the others give;
    else resized, by averages of areas where they shrink, bicubically where they grow."""
    height, width = images.shape[2:]
    if uniform is not None and min(height, width) > SIDE and uniform[0] < 0.5:
        places = zip(uniform[1:].tolist(), (height - SIDE, width - SIDE), strict=True)
        top, left = (min(int(u * (spare + 1)), spare) for u, spare in places)
        return images[:, :, top : top + SIDE, left : left + SIDE]
    if max(height, width) > SIDE:
        images = F.interpolate(images, (min(height, SIDE), min(width, SIDE)), mode="area")
    if min(height, width) < SIDE:
        images = F.interpolate(images, (SIDE, SIDE), mode="bicubic")
    return images


class LocalBatchNorm(nn.Module):
    """Batch norm of x [B, D, N] over groups of neighbouring images, in evaluation too: as few
    groups as leave none larger than 8, whose sizes differ by one at most."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        groups = x.float().tensor_split(math.ceil(len(x) / GROUP))
        options = {"weight": self.weight, "bias": self.bias, "training": True, "eps": 1e-6}
        return torch.cat([F.batch_norm(g, None, None, **options) for g in groups])


class Residual(nn.Module):
    """(f(x) + x) / √2."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return (self.block(x) + x) * 0.5**0.5


class _Conv(nn.Conv1d):
    """A convolution whose weight is normalised in float32 under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return self._conv_forward(x, weight, self.bias)


def _head(width: int) -> nn.Sequential:
    def convolution(after: int, kernel: int) -> nn.Module:
        padding = {"padding": kernel // 2, "padding_mode": "circular"}
        return spectral_norm(_Conv(width, after, kernel, **padding))

    def block(kernel: int) -> nn.Sequential:
        return nn.Sequential(convolution(width, kernel), LocalBatchNorm(width), nn.LeakyReLU(0.2))

    return nn.Sequential(block(1), Residual(block(KERNEL)), convolution(1, 1))


class _Features(nn.Module):
    """The input of the first block and the outputs of four, the class token added to each patch."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [embed(self.transformer, images, self.transformer.pos_embed)]  # [B, 1 + N, D]
        for block in self.transformer.blocks:
            found.append(block(found[-1]))
        chosen = (found[number] for number in (0, *BLOCKS))
        return [(x[:, 1:] + x[:, :1]).float().mT for x in chosen]  # [B, D, N]
