"""What a single token stands for: random tokens, replaced one by one by those of an image.

Shapes: L columns, C token channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from tokenizer.model import Tokenizer


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

    Raises:
        UserError: the noise is not that of as many tokens as the image has.
    """
    device = tokenizer.token_scale.device
    real = tokenizer.encode(image[None].to(device)).mode()[0]  # [L, C]
    if noise.shape != real.shape:
        raise UserError(f"noise: found shape {list(noise.shape)}, expected {list(real.shape)}")
    random = tokenizer.unscaled(noise.to(device))  # [L, C]
    length = len(real)
    column = torch.arange(length, device=device)
    replaced = column < torch.arange(length + 1, device=device)[:, None]  # [L+1, L]
    return tokenizer.decode(torch.where(replaced[:, :, None], real, random))  # [L+1, 3, H, W]
