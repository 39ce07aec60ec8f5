"""Convolutional autoencoder: encoder, column bottleneck, decoder, and a semantic decoder beside it.

Shapes: B batch, H W pixels, z channels, h = H/f_h rows, L = W/f_w columns, P = z·h, C token
channels.
"""

from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.blocks import Downsample, Level, Upsample, conv3, middle, norm
from tokenizer.config import AutoencoderConfig, SemanticConfig


class Encoder(nn.Module):
    """Images [B, 3, H, W] → features [B, z, h, L]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, options = config.widths, (config.dropout, config.norm_groups)
        self.conv_in = conv3(config.in_channels, config.ch)
        self.levels = nn.ModuleList(
            Level(below, width, config.num_res_blocks, config.attends(i), *options)
            for i, (below, width) in enumerate(pairwise([config.ch, *widths]))
        )
        downsamples = [Downsample(width, config.stride(i)) for i, width in enumerate(widths[:-1])]
        self.downsamples = nn.ModuleList([*downsamples, nn.Identity()])
        self.middle = middle(widths[-1], *options)
        self.norm_out = norm(widths[-1], config.norm_groups)
        self.conv_out = conv3(widths[-1], config.z_channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)  # [B, ch, H, W]
        for level, downsample in zip(self.levels, self.downsamples, strict=True):
            x = downsample(level(x))  # [B, ch·m, H/2^i, ...]
        x = self.middle(x)  # [B, ch·m, h, L]
        return self.conv_out(F.silu(self.norm_out(x)))  # [B, z, h, L]


class ColumnBottleneck(nn.Module):
    """One token a column: two convolutions over neighbouring columns on the way in, two on the way
    out. A column's vector has the channel slowest and the row fastest."""

    def __init__(self, z_channels: int, rows: int, channels: int) -> None:
        super().__init__()
        self.rows, columns = rows, z_channels * rows
        options = {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}
        self.mix_columns = nn.Conv1d(columns, columns, **options)
        self.to_tokens = nn.Conv1d(columns, channels, **options)
        self.from_tokens = nn.Conv1d(channels, columns, **options)
        self.unmix_columns = nn.Conv1d(columns, columns, **options)

    def encode(self, features: Tensor) -> Tensor:
        """Features [B, z, h, L] → the mean of the tokens [B, L, C]."""
        x = rearrange(features, "b z h w -> b w (z h)").mT  # [B, P, L]
        return self.to_tokens(self.mix_columns(x)).mT  # [B, L, C]

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, C] → features [B, z, h, L]."""
        x = self.unmix_columns(self.from_tokens(tokens.mT)).mT  # [B, L, P]
        return rearrange(x, "b w (z h) -> b z h w", h=self.rows)  # [B, z, h, L]


class Decoder(nn.Module):
    """Features [B, z, h, L] → images [B, 3, H, W], and what the semantic decoder reads."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.semantic_map = config.semantic_map
        widths, options = config.widths, (config.dropout, config.norm_groups)
        deepest = widths[-1]
        self.conv_in = conv3(config.z_channels, deepest)
        self.middle = middle(deepest, *options)
        # level 0 is the shallowest, as in the encoder
        self.levels = nn.ModuleList(
            Level(below, width, config.num_res_blocks + 1, config.attends(i), *options)
            for i, (width, below) in enumerate(pairwise([*widths, deepest]))
        )
        upsamples = [Upsample(width, config.stride(i)) for i, width in enumerate(widths[1:])]
        self.upsamples = nn.ModuleList([nn.Identity(), *upsamples])
        self.norm_out = norm(widths[0], config.norm_groups)
        self.conv_out = conv3(widths[0], config.out_ch)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        seen = {"base": self.conv_in(features)}  # [B, ch·m, h, L]
        x = seen["mid"] = self.middle(seen["base"])  # [B, ch·m, h, L]
        for level, upsample in zip(self.levels[::-1], self.upsamples[::-1], strict=True):
            x = level(x)
            seen.setdefault("res", x)  # of the deepest level
            x = upsample(x)
        images = self.conv_out(F.silu(self.norm_out(x)))
        return images, seen[self.semantic_map]  # [B, 3, H, W], [B, ch·m, h, L]


class SemanticDecoder(nn.Module):
    """Decoder features [B, c, h, L] → a map to align with a frozen network [B, out_ch, h, L]."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            Level(below, width, config.num_res_blocks, False, config.dropout, config.norm_groups)
            for below, width in pairwise(config.widths)
        )
        self.norm_out = norm(config.out_ch, config.norm_groups)
        self.conv_out = conv3(config.out_ch, config.out_ch)

    def forward(self, features: Tensor) -> Tensor:
        for level in self.levels:
            features = level(features)
        return self.conv_out(F.silu(self.norm_out(features)))
