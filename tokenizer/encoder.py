"""The convolutional encoder: images to column vectors.

Shapes: B batch, H W pixels, z channels, h = H/f_h rows, L = W/f_w columns, P = z·h.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.blocks import Downsample, Level, Middle, column_conv, conv3, norm
from tokenizer.columns import columnise
from tokenizer.config import AutoencoderConfig


class Encoder(nn.Module):
    """Images [B, 3, H, W] → column vectors [B, L, P]."""

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
        columns = config.z_channels * config.rows
        self.mix_columns = column_conv(columns, columns)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)  # [B, ch, H, W]
        for level, downsample in zip(self.levels, self.downsamples, strict=True):
            x = downsample(level(x))  # [B, ch·m, H/2^i, ...]
        x = self.middle(x)  # [B, ch·m, h, L]
        x = self.conv_out(F.silu(self.norm_out(x)))  # [B, z, h, L]
        x = columnise(x)  # [B, L, P]
        return self.mix_columns(x.mT).mT  # [B, L, P]
