"""The distribution of the column tokens of an image.

Shapes: B batch, L columns, C token channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """Tokens around a mean, with a noise scale that is itself random (paper, tokenizer section).

    Args:
        mean: [B, L, C].
        std: the largest noise scale. A sample draws one scale an image,
            s ~ N(0, (std/0.8)²) clamped to [-std, std].
    """

    mean: Tensor
    std: float

    def mode(self) -> Tensor:
        """The mean, [B, L, C]."""
        return self.mean

    def sample(self, generator: torch.Generator) -> Tensor:
        """mean + s·ε with one s an image and ε ~ N(0, 1) a value, [B, L, C]."""
        options = {"generator": generator, "device": self.mean.device, "dtype": self.mean.dtype}
        scale = torch.randn(len(self.mean), 1, 1, **options) * (self.std / 0.8)
        noise = torch.randn(self.mean.shape, **options)
        return self.mean + scale.clamp(-self.std, self.std) * noise

    def kl(self) -> Tensor:
        """½ Σ mean² over columns and channels, one value an image, [B]."""
        return 0.5 * self.mean.square().sum(dim=(1, 2))
