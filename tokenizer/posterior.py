"""The distribution of the column tokens of an image."""

import math
from dataclasses import dataclass

from torch import Tensor

from common.seeding import BatchDraws


@dataclass(frozen=True)
class Posterior:
    """Tokens around a mean, with a noise scale that is itself random (paper, tokenizer section):
    one an image, s ~ N(0, (std/0.8)²) clamped to [-std, std]."""

    mean: Tensor  # [B, L, C]
    std: float  # the largest noise scale

    def sample(self, draws: BatchDraws) -> Tensor:
        """mean + s·ε with one s an image and ε ~ N(0, 1) a value, [B, L, C]."""
        scale = draws.normal(len(self.mean), 1, 1).to(self.mean) * (self.std / 0.8)
        noise = draws.normal(*self.mean.shape).to(self.mean)
        return self.mean + scale.clamp(-self.std, self.std) * noise

    @property
    def noise_variance(self) -> float:
        """The variance that a sample adds to the mean: E[s²], in closed form."""
        sigma, bound = self.std / 0.8, self.std
        inside = math.erf(0.8 / math.sqrt(2))  # P(|s| < bound)
        density = math.exp(-(0.8**2) / 2) / math.sqrt(2 * math.pi)
        return sigma**2 * (inside - 2 * 0.8 * density) + bound**2 * (1 - inside)

    def kl(self) -> Tensor:
        """½ Σ mean² over columns and channels, one value an image, [B]."""
        return 0.5 * self.mean.square().sum(dim=(1, 2))
