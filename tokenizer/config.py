"""Sizes of the tokenizer's networks, under the names of the released YAML files."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from common.config import Fraction, Natural, Positive, limits
from common.errors import UserError

Multipliers = Annotated[tuple[int, ...], limits(min=1)]


def _require(holds: bool, key: str, found: Any, expected: object) -> None:
    if not holds:
        raise UserError(f"{key}: found {found}, expected {expected}")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of encoder and decoder (`ddconfig`).

    `norm_groups`: the paper's 32 suits ch ≥ 128; narrower networks need fewer, since a group of one
    channel loses that channel's level. `semantic_map`: decoder features that feed the semantic
    decoder, after conv_in (`base`), the middle (`mid`) or the blocks of the deepest level (`res`).
    """

    resolution: Positive  # height of the images in pixels; widths are free
    ch: Positive  # channels of the first level; level i has `ch * ch_mult[i]`
    ch_mult: Multipliers
    num_res_blocks: Natural  # a level (the decoder has one more)
    z_channels: Positive  # of the deepest feature map, before it is cut into tokens
    len_down_scale: Natural  # how many levels halve the width; all halve the height
    attn_resolutions: Multipliers = ()  # nominal ones, with attention after each residual block
    in_channels: Literal[3] = 3
    out_ch: Literal[3] = 3
    dropout: Fraction = 0.0
    norm_groups: Positive = 32
    token_grid: Natural = 0  # rows of tokens, each of a square patch; 0: a token is a column
    semantic_map: Literal["base", "mid", "res"] = "res"
    double_enc: Literal[False] = False  # mean and variance; the column tokenizer has the mean

    def __post_init__(self) -> None:
        widths, size, factor = self.widths, self.resolution, 2 ** (len(self.ch_mult) - 1)
        _require(len(widths) > 0, "ch_mult", "no levels", "one or more")
        _require(size % factor == 0, "resolution", size, f"a multiple of {factor}")
        places, rows = size // factor, self.token_grid
        sound = rows != 1 and places % max(rows, 1) == 0
        _require(sound, "token_grid", rows, f"0, or a divisor of {places} above 1")
        same = self.num_res_blocks > 0 or len(set(widths)) == 1
        _require(same, "num_res_blocks", 0, "1 or more where widths differ")
        for level, width in enumerate(widths):
            parts = math.prod(self.stride(level)) if level < len(widths) - 1 else 1
            sound = width % parts == 0 and width % self.norm_groups == 0
            expected = f"multiples of {parts} and of norm_groups {self.norm_groups}"
            _require(sound, "ch", f"{width} channels at a level", expected)

    @property
    def widths(self) -> list[int]:
        """Channels of each level, shallow to deep."""
        return [self.ch * m for m in self.ch_mult]

    @property
    def token_size(self) -> tuple[int, int]:
        """Height and width of a token in pixels."""
        if self.token_grid:
            return (self.resolution // self.token_grid,) * 2
        return self.resolution, 2 ** min(self.len_down_scale, len(self.ch_mult) - 1)

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of what a token is made of in the deepest feature map."""
        deepest, (height, width) = len(self.ch_mult) - 1, self.token_size
        return height // 2**deepest, width // 2 ** min(self.len_down_scale, deepest)

    def stride(self, level: int) -> tuple[Literal[2], Literal[1, 2]]:
        """Stride between `level` and `level + 1`."""
        return (2, 2) if level < self.len_down_scale else (2, 1)

    def attends(self, level: int) -> bool:
        return self.resolution // 2**level in self.attn_resolutions


@dataclass(frozen=True)
class SemanticConfig:
    """Sizes of the semantic decoder (`sematicconfig`), which reads the decoder's deepest features.

    Level i takes `ch * ch_mult[i]` channels and gives `ch * ch_mult[i + 1]`, the last one `out_ch`,
    as many as the frozen network has that it is aligned with.
    """

    ch: Positive
    ch_mult: Multipliers
    num_res_blocks: Positive
    out_ch: Positive
    dropout: Fraction = 0.0
    norm_groups: Positive = 32
    # in released files, without effect
    z_channels: int | None = None
    resolution: int | None = None
    in_channels: int | None = None
    attn_resolutions: tuple[int, ...] = ()
    downsample_scale: Literal[0] = 0

    def __post_init__(self) -> None:
        _require(len(self.ch_mult) > 0, "ch_mult", "no levels", "one or more")
        _require(not self.attn_resolutions, "attn_resolutions", self.attn_resolutions, "none")
        sound = all(width % self.norm_groups == 0 for width in self.widths)
        _require(sound, "norm_groups", self.norm_groups, f"a divisor of {self.widths}")

    @property
    def widths(self) -> list[int]:
        """Channels that enter each level, and those that leave the last one."""
        return [*(self.ch * m for m in self.ch_mult), self.out_ch]


@dataclass(frozen=True)
class TokenizerConfig:
    """What decides a tokenizer's network, as its checkpoint carries it."""

    ddconfig: AutoencoderConfig
    embed_dim: Positive  # channels of a token, C
    std: Annotated[float, limits(min=0)] = 2.5  # largest noise scale of the posterior
    sematicconfig: SemanticConfig | None = None  # without it there is no semantic decoder
    post_channels: int | None = None  # of a token's features; only checked

    def __post_init__(self) -> None:
        features = self.ddconfig.z_channels * math.prod(self.ddconfig.patch)
        found = self.post_channels
        _require(found in (None, features), "post_channels", found, features)
        if self.sematicconfig is not None:
            entering, deepest = self.sematicconfig.widths[0], self.ddconfig.widths[-1]
            expected = f"{deepest}, those of the decoder's deepest level"
            _require(entering == deepest, "sematicconfig.ch_mult", f"{entering} channels", expected)
