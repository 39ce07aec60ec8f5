"""Discriminators: networks that tell real images from reconstructions.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class PatchGAN(nn.Module):
    """Judges overlapping patches: images [B, 3, H, W] → logits [B, 1, h', w'] (Isola et al. 2017).

    Args:
        width: channels of the first layer, doubled by each further one up to eightfold.
        layers: strided layers after the first; three see patches of 70 pixels.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (below, above) in enumerate(pairwise(widths), start=1):
            stack += [
                nn.Conv2d(below, above, 4, stride=2 if i < layers else 1, padding=1, bias=False),
                nn.BatchNorm2d(above),
                nn.LeakyReLU(0.2),
            ]
        stack.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.stack = nn.Sequential(*stack)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.stack(images)
