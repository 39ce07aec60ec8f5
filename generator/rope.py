"""Rotary position embedding (Su et al. 2021) on pairs of neighbouring channels.

Shapes: L columns, d channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(positions: Tensor, channels: int, base: float = 10000.0) -> Tensor:
    """Cosines and sines of positions [L] → [2, L, d/2], float32 whatever the model's precision."""
    exponents = torch.arange(0, channels, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * base ** (-exponents / channels)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns each pair of neighbouring channels of x [..., L, d] by its position's angle."""
    cos, sin = rotation.to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
