"""Convolutional autoencoder: encoder, bottleneck, decoder, and a semantic decoder beside it.

Shapes: B batch, H W pixels, z channels, h = H/f_h and w = W/f_w of the deepest feature map, R rows
of tokens, L tokens, P features of a token, C token channels.
"""

import math
from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.blocks import Downsample, Level, Upsample, conv3, middle, norm
from tokenizer.config import AutoencoderConfig, SemanticConfig


class Encoder(nn.Module):
    """Images [B, 3, H, W] → features [B, z, h, w]."""

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
        x = self.middle(x)  # [B, ch·m, h, w]
        return self.conv_out(F.silu(self.norm_out(x)))  # [B, z, h, w]


class Bottleneck(nn.Module):
    """One token a patch of the features, which is a whole column where there is one row of tokens:
    two convolutions along the row on the way in, two on the way out. Tokens are in raster order; in
    the vector of a patch the channel is slowest, then the row."""

    def __init__(self, z_channels: int, rows: int, patch: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.rows, self.patch, features = rows, patch, z_channels * math.prod(patch)
        options = {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}
        self.mix_columns = nn.Conv1d(features, features, **options)
        self.to_tokens = nn.Conv1d(features, channels, **options)
        self.from_tokens = nn.Conv1d(channels, features, **options)
        self.unmix_columns = nn.Conv1d(features, features, **options)

    def encode(self, features: Tensor) -> Tensor:
        """Features [B, z, h, w] → the mean of the tokens [B, L, C]."""
        height, width = self.patch
        pattern = "b z (r h) (l w) -> (b r) l (z h w)"
        x = rearrange(features, pattern, h=height, w=width).mT  # [B·R, P, L/R]
        x = self.to_tokens(self.mix_columns(x)).mT  # [B·R, L/R, C]
        return rearrange(x, "(b r) l c -> b (r l) c", r=self.rows)  # [B, L, C]

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, C] → features [B, z, h, w]."""
        x = rearrange(tokens, "b (r l) c -> (b r) l c", r=self.rows).mT  # [B·R, C, L/R]
        x = self.unmix_columns(self.from_tokens(x)).mT  # [B·R, L/R, P]
        pattern, (height, width) = "(b r) l (z h w) -> b z (r h) (l w)", self.patch
        return rearrange(x, pattern, r=self.rows, h=height, w=width)  # [B, z, h, w]


class Decoder(nn.Module):
    """Features [B, z, h, w] → images [B, 3, H, W], and what the semantic decoder reads."""

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
        seen = {"base": self.conv_in(features)}  # [B, ch·m, h, w]
        x = seen["mid"] = self.middle(seen["base"])  # [B, ch·m, h, w]
        for level, upsample in zip(self.levels[::-1], self.upsamples[::-1], strict=True):
            x = level(x)
            seen.setdefault("res", x)  # of the deepest level
            x = upsample(x)
        images = self.conv_out(F.silu(self.norm_out(x)))
        return images, seen[self.semantic_map]  # [B, 3, H, W], [B, ch·m, h, w]


class SemanticDecoder(nn.Module):
    """Decoder features [B, c, h, w] → a map to align with a frozen network [B, out_ch, h, w]."""

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
