"""Residual, attention and resampling blocks of the convolutional autoencoder."""

from collections import OrderedDict
from itertools import pairwise
from typing import Literal

from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional as F

Stride = tuple[Literal[1, 2], Literal[1, 2]]


def unshuffle(x: Tensor, stride: Stride) -> Tensor:
    """Space to depth: [B, c, h, w] → [B, c·sh·sw, h/sh, w/sw], channels ordered (c, sh, sw)."""
    sh, sw = stride
    return rearrange(x, "b c (h sh) (w sw) -> b (c sh sw) h w", sh=sh, sw=sw)


def shuffle(x: Tensor, stride: Stride) -> Tensor:
    """Depth to space, the inverse of `unshuffle`: [B, c·sh·sw, h, w] → [B, c, h·sh, w·sw]."""
    sh, sw = stride
    return rearrange(x, "b (c sh sw) h w -> b c (h sh) (w sw)", sh=sh, sw=sw)


def norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3×3 convolution padded by reflection, so that no border is marked."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect")


class ResidualBlock(nn.Module):
    def __init__(self, below: int, width: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(below, groups)
        self.conv1 = conv3(below, width)
        self.norm2 = norm(width, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3(width, width)
        self.shortcut = nn.Identity() if below == width else nn.Conv2d(below, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return self.shortcut(x) + y


class AttentionBlock(nn.Module):
    """One head of attention over all positions of the feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.q, self.k, self.v, self.proj = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (rearrange(f(y), "b c h w -> b 1 (h w) c") for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)  # scale c^-0.5
        return x + self.proj(rearrange(y, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Space-to-depth around a convolution; the residual is the mean of each run of r channels."""

    def __init__(self, channels: int, stride: Stride) -> None:
        super().__init__()
        self.stride, self.ratio = stride, stride[0] * stride[1]
        self.conv = conv3(channels, channels // self.ratio)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = reduce(unshuffle(x, self.stride), "b (c r) h w -> b c h w", "mean", r=self.ratio)
        return unshuffle(self.conv(x), self.stride) + shortcut


class Upsample(nn.Module):
    """Depth-to-space around a convolution, with each channel repeated `r` times as residual."""

    def __init__(self, channels: int, stride: Stride) -> None:
        super().__init__()
        self.stride, self.ratio = stride, stride[0] * stride[1]
        self.conv = conv3(channels, channels * self.ratio)

    def forward(self, x: Tensor) -> Tensor:
        repeated = repeat(x, "b c h w -> b (c r) h w", r=self.ratio)
        return shuffle(self.conv(x) + repeated, self.stride)


def middle(channels: int, dropout: float, groups: int) -> nn.Sequential:
    """Residual block, attention, residual block at the deepest level."""
    parts = OrderedDict(block1=ResidualBlock(channels, channels, dropout, groups))
    parts["attention"] = AttentionBlock(channels, groups)
    parts["block2"] = ResidualBlock(channels, channels, dropout, groups)
    return nn.Sequential(parts)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for."""

    def __init__(
        self, below: int, width: int, blocks: int, attends: bool, dropout: float, groups: int
    ) -> None:
        super().__init__()
        pairs = pairwise([below] + [width] * blocks)
        self.blocks = nn.ModuleList(ResidualBlock(a, b, dropout, groups) for a, b in pairs)
        self.attentions = nn.ModuleList(
            AttentionBlock(width, groups) if attends else nn.Identity() for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return x
