"""Convolutional encoder: images to a feature map.

Shapes: B batch, H W pixels, z channels, h = H/f_h rows, L = W/f_w columns.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.blocks import Downsample, Level, Middle, conv3, norm
from tokenizer.config import AutoencoderConfig


class Encoder(nn.Module):
    """Images [B, 3, H, W] → features [B, z, h, L]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths
        options = (config.dropout, config.norm_groups)
        self.conv_in = conv3(config.in_channels, config.ch)
        self.levels = nn.ModuleList(
            Level(below, width, config.num_res_blocks, config.attends(i), *options)
            for i, (below, width) in enumerate(zip([config.ch, *widths], widths, strict=False))
        )
        self.downsamples = nn.ModuleList(
            [Downsample(width, config.stride(i)) for i, width in enumerate(widths[:-1])]
            + [nn.Identity()]
        )
        self.middle = Middle(widths[-1], *options)
        self.norm_out = norm(widths[-1], config.norm_groups)
        self.conv_out = conv3(widths[-1], config.z_channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)  # [B, ch, H, W]
        for level, downsample in zip(self.levels, self.downsamples, strict=True):
            x = downsample(level(x))  # [B, ch·m, H/2^i, ...]
        x = self.middle(x)  # [B, ch·m, h, L]
        return self.conv_out(F.silu(self.norm_out(x)))  # [B, z, h, L]
