"""Convolutional decoder, and the semantic decoder beside it.

Shapes: B batch, H W pixels, z channels, h = H/f_h rows, L = W/f_w columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.blocks import Level, Middle, Upsample, conv3, norm
from tokenizer.config import AutoencoderConfig, SemanticConfig


@dataclass(frozen=True)
class Decoded:
    """Images [B, 3, H, W] and the features the semantic decoder reads, [B, c, h, L]."""

    images: Tensor
    features: Tensor


class Decoder(nn.Module):
    """Features [B, z, h, L] → images [B, 3, H, W]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.semantic_map = config.semantic_map
        options = (config.dropout, config.norm_groups)
        widths, deepest = config.widths, config.widths[-1]
        self.conv_in = conv3(config.z_channels, deepest)
        self.middle = Middle(deepest, *options)
        # level 0 is the shallowest, as in the encoder
        self.levels = nn.ModuleList(
            Level(below, width, config.num_res_blocks + 1, config.attends(i), *options)
            for i, (below, width) in enumerate(zip([*widths[1:], deepest], widths, strict=True))
        )
        self.upsamples = nn.ModuleList(
            [nn.Identity()]
            + [Upsample(width, config.stride(i)) for i, width in enumerate(widths[1:])]
        )
        self.norm_out = norm(widths[0], config.norm_groups)
        self.conv_out = conv3(widths[0], config.out_ch)

    def forward(self, features: Tensor) -> Decoded:
        x, semantic = self.trunk(features)
        return Decoded(self.conv_out(x), semantic)  # [B, 3, H, W]

    def trunk(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """All but the last convolution: its input [B, ch, H, W], and the semantic features."""
        seen = {}
        x = seen["base"] = self.conv_in(features)  # [B, ch·m, h, L]
        x = seen["mid"] = self.middle(x)  # [B, ch·m, h, L]
        for level, upsample in zip(self.levels[::-1], self.upsamples[::-1], strict=True):
            x = level(x)
            seen.setdefault("res", x)  # of the deepest level
            x = upsample(x)
        return F.silu(self.norm_out(x)), seen[self.semantic_map]


class SemanticDecoder(nn.Module):
    """Decoder features [B, c, h, L] → a map to align with a frozen network [B, out_ch, h, L]."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        widths = [*(config.ch * m for m in config.ch_mult), config.out_ch]
        self.levels = nn.ModuleList(
            Level(below, width, config.num_res_blocks, False, config.dropout, config.norm_groups)
            for below, width in pairwise(widths)
        )
        self.norm_out = norm(config.out_ch, config.norm_groups)
        self.conv_out = conv3(config.out_ch, config.out_ch)

    def forward(self, features: Tensor) -> Tensor:
        for level in self.levels:
            features = level(features)
        return self.conv_out(F.silu(self.norm_out(features)))
