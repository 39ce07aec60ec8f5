"""Column bottleneck: feature maps to one token a column and back.

Shapes: B batch, z channels, h w feature map, L = w columns, P = z·h, C token channels.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


def columnise(features: Tensor) -> Tensor:
    """One vector a column: [B, z, h, w] → [B, w, z·h], channel slowest, row fastest."""
    return rearrange(features, "b z h w -> b w (z h)")


def rasterise(columns: Tensor, height: int) -> Tensor:
    """The inverse of `columnise`: [B, w, z·h] → [B, z, h, w]."""
    return rearrange(columns, "b w (z h) -> b z h w", h=height)


def column_conv(in_channels: int, out_channels: int) -> nn.Conv1d:
    """Convolution over three neighbouring columns, padded by reflection."""
    return nn.Conv1d(in_channels, out_channels, 3, padding=1, padding_mode="reflect")


class ColumnBottleneck(nn.Module):
    """Two convolutions over the columns on the way in, and two on the way out.

    Args:
        z_channels: channels of the feature map, z.
        rows: its height, h.
        channels: of a token, C.
    """

    def __init__(self, z_channels: int, rows: int, channels: int) -> None:
        super().__init__()
        columns = z_channels * rows
        self.rows = rows
        self.mix_columns = column_conv(columns, columns)
        self.to_tokens = column_conv(columns, channels)
        self.from_tokens = column_conv(channels, columns)
        self.unmix_columns = column_conv(columns, columns)

    def encode(self, features: Tensor) -> Tensor:
        """Features [B, z, h, L] → the mean of the tokens [B, L, C]."""
        x = columnise(features).mT  # [B, P, L]
        return self.to_tokens(self.mix_columns(x)).mT  # [B, L, C]

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, C] → features [B, z, h, L]."""
        x = self.unmix_columns(self.from_tokens(tokens.mT)).mT  # [B, L, P]
        return rasterise(x, self.rows)  # [B, z, h, L]
