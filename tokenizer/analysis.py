"""What a single token stands for: tokens of an image against random ones, and what that changes."""

import torch
from torch import Tensor

from common.errors import UserError
from tokenizer.model import Tokenizer

SHARE = 0.1  # of the largest change, above which a column of pixels counts as influenced


@torch.inference_mode()
def token_meaning(tokenizer: Tokenizer, image: Tensor, noise: Tensor) -> Tensor:
    """Frames in which an image appears from left to right.

    Frame k shows the first k tokens of the image, and random ones after them: frame 0 is random
    throughout, frame L is the reconstruction.

    Args:
        tokenizer: in evaluation mode.
        image: [3, H, W] in [-1, 1].
        noise: [L, C] standard normal, the random tokens in stage two's scale.

    Returns:
        [L + 1, 3, H, W] in about [-1, 1], on the tokenizer's device.
    """
    real, random = _real_and_random(tokenizer, image, noise)  # [L, C]
    column = torch.arange(len(real), device=real.device)
    replaced = column < torch.arange(len(real) + 1, device=real.device)[:, None]  # [L+1, L]
    return tokenizer.decode(torch.where(replaced[:, :, None], real, random))  # [L+1, 3, H, W]


@torch.inference_mode()
def single_replacements(tokenizer: Tokenizer, image: Tensor, noise: Tensor) -> Tensor:
    """The reconstruction of an image with one of its tokens replaced by a random one, each in turn:
    [L, 3, H, W] in about [-1, 1]. Arguments are those of `token_meaning`."""
    real, random = _real_and_random(tokenizer, image, noise)  # [L, C]
    replaced = torch.eye(len(real), dtype=torch.bool, device=real.device)  # [L, L]
    return tokenizer.decode(torch.where(replaced[:, :, None], random, real))  # [L, 3, H, W]


def difference(changed: Tensor, original: Tensor) -> Tensor:
    """The absolute change of each pixel, the mean over its colours: images [..., 3, H, W] twice, in
    [-1, 1] → [..., H, W], where 1 is the change from black to white."""
    return (changed - original).abs().mean(-3) / 2


def influence_width(profile: Tensor, share: float = SHARE) -> Tensor:
    """How many columns of pixels something changes: mean absolute changes [..., W] → counts [...]
    of those above a share of the largest."""
    return (profile > share * profile.amax(-1, keepdim=True)).sum(-1)


def _real_and_random(tokenizer: Tokenizer, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [L, C] of the image, and as many random ones, in the posterior's scale."""
    device = tokenizer.token_scale.device
    real = tokenizer.encode(image[None].to(device)).mode()[0]
    if noise.shape != real.shape:
        raise UserError(f"noise: found shape {list(noise.shape)}, expected {list(real.shape)}")
    return real, tokenizer.unscaled(noise.to(device))
