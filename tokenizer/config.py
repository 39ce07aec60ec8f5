"""Sizes of the tokenizer's networks, under the names of the released YAML files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from common.config import Fraction, Natural, Positive, limits
from common.errors import UserError

Multipliers = Annotated[tuple[int, ...], limits(min=1)]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of encoder and decoder (`ddconfig`).

    Args:
        resolution: height of the images in pixels; widths are free.
        ch: channels of the first level; level i has `ch * ch_mult[i]`.
        num_res_blocks: residual blocks a level (the decoder has one more).
        z_channels: channels of the deepest feature map, before it is cut into columns.
        len_down_scale: how many levels halve the width; all halve the height.
        attn_resolutions: nominal resolutions at which attention follows each residual block.
        norm_groups: groups of every normalisation; the paper's 32 suits ch ≥ 128, and narrower
            networks need fewer, since a group of one channel loses that channel's level.
        semantic_map: decoder features that feed the semantic decoder: `base` after conv_in,
            `mid` after the middle, `res` after the blocks of the deepest level.
        double_enc: two encoder outputs (mean and variance); the column tokenizer has one.
    """

    resolution: Positive
    ch: Positive
    ch_mult: Multipliers
    num_res_blocks: Natural
    z_channels: Positive
    len_down_scale: Natural
    attn_resolutions: Multipliers = ()
    in_channels: Literal[3] = 3
    out_ch: Literal[3] = 3
    dropout: Fraction = 0.0
    norm_groups: Positive = 32
    semantic_map: Literal["base", "mid", "res"] = "res"
    double_enc: Literal[False] = False

    def __post_init__(self) -> None:
        if not self.ch_mult:
            raise UserError("ch_mult: found no levels, expected one or more")
        if self.resolution % self.height_factor:
            raise UserError(
                f"resolution: found {self.resolution}, expected a multiple of "
                f"{self.height_factor} ({len(self.ch_mult)} levels in ch_mult)"
            )
        if self.num_res_blocks < 1 and len(set(self.ch_mult)) > 1:
            raise UserError(
                f"num_res_blocks: found {self.num_res_blocks}, expected 1 or more with ch_mult "
                f"{list(self.ch_mult)}: without blocks all levels have one width"
            )
        for level, width in enumerate(self.widths):
            ratio = math.prod(self.stride(level)) if level < self.levels - 1 else 1
            for unit, what in ((ratio, "downsampling"), (self.norm_groups, "norm_groups")):
                if width % unit:
                    raise UserError(
                        f"ch: found {width} channels (ch × ch_mult) at level {level}, expected a "
                        f"multiple of {unit}, by which {what} divides them"
                    )

    @property
    def levels(self) -> int:
        return len(self.ch_mult)

    @property
    def widths(self) -> list[int]:
        """Channels of each level, shallow to deep."""
        return [self.ch * m for m in self.ch_mult]

    @property
    def height_factor(self) -> int:
        return 2 ** (self.levels - 1)

    @property
    def column_width(self) -> int:
        """Width of a column in pixels, f_w."""
        return 2 ** min(self.len_down_scale, self.levels - 1)

    @property
    def rows(self) -> int:
        """Height of the deepest feature map, h."""
        return self.resolution // self.height_factor

    def stride(self, level: int) -> tuple[int, int]:
        """Stride between `level` and `level + 1`."""
        return (2, 2) if level < self.len_down_scale else (2, 1)

    def attends(self, level: int) -> bool:
        return self.resolution // 2**level in self.attn_resolutions


@dataclass(frozen=True)
class SemanticConfig:
    """Sizes of the semantic decoder (`sematicconfig`).

    Args:
        ch: unit of width; level i takes `ch * ch_mult[i]` channels and gives
            `ch * ch_mult[i + 1]`, the last one `out_ch`. The first takes the decoder's deepest
            features.
        num_res_blocks: residual blocks a level.
        out_ch: channels of the map it predicts, those of the frozen network it is aligned with.
        z_channels, resolution, in_channels: in released files, without effect.
        attn_resolutions, downsample_scale: in released files, where there is neither attention nor
            resampling.
    """

    ch: Positive
    ch_mult: Multipliers
    num_res_blocks: Positive
    out_ch: Positive
    dropout: Fraction = 0.0
    norm_groups: Positive = 32
    z_channels: int | None = None
    resolution: int | None = None
    in_channels: int | None = None
    attn_resolutions: tuple[int, ...] = ()
    downsample_scale: Literal[0] = 0

    def __post_init__(self) -> None:
        if not self.ch_mult or self.attn_resolutions:
            key = "attn_resolutions" if self.ch_mult else "ch_mult"
            expected = "none" if self.ch_mult else "one level or more"
            raise UserError(f"{key}: found {list(getattr(self, key))}, expected {expected}")
        for width in self.widths:
            if width % self.norm_groups:
                raise UserError(
                    f"norm_groups: found {self.norm_groups}, expected a number that divides the "
                    f"{width} channels of a level"
                )

    @property
    def widths(self) -> list[int]:
        """Channels that enter each level, and those that leave the last one."""
        return [*(self.ch * m for m in self.ch_mult), self.out_ch]


@dataclass(frozen=True)
class TokenizerConfig:
    """What decides a tokenizer's network, as its checkpoint carries it; see `Tokenizer`."""

    ddconfig: AutoencoderConfig
    embed_dim: Positive
    std: Annotated[float, limits(min=0)] = 2.5
    sematicconfig: SemanticConfig | None = None
    post_channels: int | None = None

    def __post_init__(self) -> None:
        config, semantic = self.ddconfig, self.sematicconfig
        columns = config.z_channels * config.rows
        if self.post_channels not in (None, columns):
            raise UserError(
                f"post_channels: found {self.post_channels}, expected z_channels × "
                f"(resolution / {config.height_factor}) = {columns}"
            )
        if semantic is not None and semantic.widths[0] != config.widths[-1]:
            raise UserError(
                f"sematicconfig.ch_mult: found {semantic.widths[0]} channels (ch × ch_mult[0]) "
                f"that enter, expected the {config.widths[-1]} of the decoder's deepest level"
            )
