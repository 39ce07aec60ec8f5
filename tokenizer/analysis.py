"""What a single token stands for: tokens of an image against random ones, and what that changes.

An image is [3, H, W] in [-1, 1], and noise [L, C] standard normal: random tokens in stage two's
scale. What comes back lies on the tokenizer's device, images in about [-1, 1].
"""

import torch
from torch import Tensor

from common.errors import UserError
from tokenizer.model import Tokenizer

SHARE = 0.1  # of the largest change, above which a column of pixels counts as influenced


def token_meaning(tokenizer: Tokenizer, image: Tensor, noise: Tensor) -> Tensor:
    """Frames [L + 1, 3, H, W] in which an image appears from left to right: frame k shows its first
    k tokens, and random ones after them; frame L is the reconstruction."""
    return _replaced(tokenizer, image, noise, torch.ones(len(noise) + 1, len(noise)).triu())


def single_replacements(tokenizer: Tokenizer, image: Tensor, noise: Tensor) -> Tensor:
    """The reconstruction of an image with one of its tokens replaced by a random one, each in turn:
    [L, 3, H, W]."""
    return _replaced(tokenizer, image, noise, torch.eye(len(noise)))


@torch.inference_mode()
def _replaced(tokenizer: Tokenizer, image: Tensor, noise: Tensor, where: Tensor) -> Tensor:
    """Reconstructions [N, 3, H, W] with random tokens where a mask [N, L] is not 0."""
    device = tokenizer.token_scale.device
    real = tokenizer.encode(image[None].to(device)).mode()[0]  # [L, C]
    if noise.shape != real.shape:
        raise UserError(f"noise: found shape {list(noise.shape)}, expected {list(real.shape)}")
    random = tokenizer.unscaled(noise.to(device))
    return tokenizer.decode(torch.where(where[:, :, None].to(device) > 0, random, real))


def difference(changed: Tensor, original: Tensor) -> Tensor:
    """The absolute change of each pixel, the mean over its colours: images [..., 3, H, W] twice →
    [..., H, W], where 1 is the change from black to white."""
    return (changed - original).abs().mean(-3) / 2


def influence_width(profile: Tensor, share: float = SHARE) -> Tensor:
    """How many columns of pixels something changes: mean absolute changes [..., W] → counts [...]
    of those above a share of the largest."""
    return (profile > share * profile.amax(-1, keepdim=True)).sum(-1)
