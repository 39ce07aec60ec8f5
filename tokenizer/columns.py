"""From feature maps to column vectors and back.

Shapes: B batch, z channels, h w feature map, P = z·h.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def columnise(features: Tensor) -> Tensor:
    """One vector a column: [B, z, h, w] → [B, w, z·h], channel slowest, row fastest."""
    return rearrange(features, "b z h w -> b w (z h)")


def rasterise(columns: Tensor, height: int) -> Tensor:
    """The inverse of `columnise`: [B, w, z·h] → [B, z, h, w]."""
    return rearrange(columns, "b w (z h) -> b z h w", h=height)
