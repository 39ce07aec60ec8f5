"""What a single token stands for: tokens of an image against random ones, and what that changes."""

import torch
from torch import Tensor

from tokenizer.model import Tokenizer


@torch.inference_mode()
def replace_tokens(tokenizer: Tokenizer, image: Tensor, noise: Tensor, where: Tensor) -> Tensor:
    """Reconstructions [N, 3, H, W] of an image [3, H, W] in [-1, 1], with random tokens where the
    masks [N, L] are true: noise [L, C], in stage two's scale."""
    device = tokenizer.token_scale.device
    real = tokenizer.encode(image[None].to(device)).mean[0]  # [L, C]
    random = tokenizer.unscaled(noise.to(device))
    return tokenizer.decode(torch.where(where[:, :, None].to(device), random, real))
