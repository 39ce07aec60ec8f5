"""The sizes of the networks, under the names of the released YAML files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

from common.coerce import Mismatch, coerce, describe
from common.config import check_keys
from common.errors import UserError

T = TypeVar("T")


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

    resolution: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    len_down_scale: int
    attn_resolutions: tuple[int, ...] = ()
    in_channels: int = 3
    out_ch: int = 3
    dropout: float = 0.0
    norm_groups: int = 32
    semantic_map: Literal["base", "mid", "res"] = "res"
    double_enc: bool = False

    def __post_init__(self) -> None:
        sizes = ("resolution", "ch", "z_channels", "in_channels", "out_ch", "norm_groups")
        _at_least_one(self, "ddconfig", *sizes)
        if self.double_enc:
            raise UserError(
                "ddconfig.double_enc: true is not supported: the posterior has a fixed "
                "noise range, so the encoder gives the mean alone; expected false"
            )
        if self.semantic_map not in ("base", "mid", "res"):
            raise UserError(
                f"ddconfig.semantic_map: found {self.semantic_map!r}, "
                "expected one of base, mid, res"
            )
        if self.resolution % self.height_factor:
            raise UserError(
                f"ddconfig.resolution: found {self.resolution}, expected a multiple of "
                f"{self.height_factor} ({len(self.ch_mult)} levels in ch_mult)"
            )
        if self.num_res_blocks < 1 and len(set(self.ch_mult)) > 1:
            raise UserError(
                f"ddconfig.num_res_blocks: found {self.num_res_blocks}, expected 1 or more with "
                f"ch_mult {list(self.ch_mult)}: without blocks all levels have one width"
            )
        for level, width in enumerate(self.widths[:-1]):
            ratio = math.prod(self.stride(level))
            if width % ratio:
                raise UserError(
                    f"ddconfig.ch: found {width} channels (ch × ch_mult) at level {level}, "
                    f"expected a multiple of {ratio}, into which downsampling divides them"
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
        z_channels: channels of the decoder features it reads.
        ch: channels of the first level; level i has `ch * ch_mult[i]`.
        num_res_blocks: residual blocks a level.
        out_ch: channels of the map it predicts, those of the frozen network it is aligned with.
        resolution, in_channels, attn_resolutions, downsample_scale: in released files, without
            effect there; anything but "no attention, no resampling" is refused.
    """

    z_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    out_ch: int
    dropout: float = 0.0
    norm_groups: int = 32
    resolution: int | None = None
    in_channels: int | None = None
    attn_resolutions: tuple[int, ...] = ()
    downsample_scale: int = 0

    def __post_init__(self) -> None:
        _at_least_one(self, "sematicconfig", "z_channels", "ch", "out_ch", "norm_groups")
        for key in ("attn_resolutions", "downsample_scale"):
            if getattr(self, key):
                raise UserError(
                    f"sematicconfig.{key}: found {getattr(self, key)!r}, expected "
                    "none: the semantic decoder has neither attention nor resampling"
                )


def _at_least_one(config: AutoencoderConfig | SemanticConfig, where: str, *names: str) -> None:
    """Refuse sizes below one, and no levels."""
    sizes = {name: (getattr(config, name),) for name in names} | {"ch_mult": config.ch_mult}
    for name, values in sizes.items():
        if not values or min(values) < 1:
            found = getattr(config, name)
            raise UserError(f"{where}.{name}: found {found}, expected positive numbers")


def parse(kind: type[T], section: Mapping[str, Any] | T, where: str) -> T:
    """A section of a YAML file as its dataclass.

    Raises:
        UserError: naming a key that is unknown, missing or of a wrong type.
    """
    if isinstance(section, kind):
        return section
    hints = get_type_hints(kind)
    check_keys(section, hints, where)
    values = {}
    for field in fields(kind):
        if field.name in section:
            value, hint = section[field.name], hints[field.name]
            try:
                values[field.name] = coerce(value, hint)
            except Mismatch:
                raise UserError(
                    f"{where}.{field.name}: found {value!r}, expected {describe(hint)}"
                ) from None
        elif field.default is MISSING:
            expected = describe(hints[field.name])
            raise UserError(f"{where}: missing key {field.name!r}; expected {expected}")
    return kind(**values)
