"""From columns to pixels at constant memory, however wide the picture.

The tokenizer's decoder normalises and attends over the whole width, so pieces differ a little
from the whole; neighbouring pieces share columns, over which one fades into the other.

Shapes: B batch, L columns, C token channels, H W pixels, f_w column width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common import images
from common.errors import UserError


class Decoder(Protocol):
    """What is needed of a tokenizer: tokens in the model's scale [B, L, C] → [B, 3, H, L·f_w]."""

    column_width: int

    def decode_tokens(self, tokens: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Pieces:
    """How much is decoded at once, which bounds the memory.

    Args:
        columns: of one piece; a picture that has no more is decoded whole, as released.
        overlap: columns that two neighbouring pieces share.
    """

    columns: int = 256
    overlap: int = 16

    def __post_init__(self) -> None:
        if self.columns < 2:
            raise UserError(f"--decode_columns: found {self.columns}, expected at least 2")
        if not 0 <= 2 * self.overlap <= self.columns:
            raise UserError(
                f"--decode_overlap: found {self.overlap}, expected 0 … {self.columns // 2}, half "
                "of --decode_columns"
            )


PIECES = Pieces()


def decode_strips(
    decoder: Decoder, columns: Iterable[Tensor], pieces: Pieces = PIECES
) -> Iterator[Tensor]:
    """Strips [B, 3, H, w] of a picture, from left to right, as soon as its columns are there.

    Args:
        decoder: a tokenizer.
        columns: tokens [B, C] in the model's scale, with or without an end.
        pieces: see `Pieces`.

    Returns:
        Strips of varying width; together as wide as all columns.
    """
    width = decoder.column_width
    held: deque[Tensor] = deque(maxlen=pieces.columns)
    waiting = 0  # columns that are in no piece yet
    tail: Tensor | None = None  # the end of the last piece, over which the next one fades in
    for token in columns:
        held.append(token)
        waiting += 1
        if waiting == pieces.columns - (0 if tail is None else pieces.overlap):
            pixels = _fade(tail, decoder.decode_tokens(torch.stack(tuple(held), dim=1)))
            end = pixels.shape[3] - pieces.overlap * width
            tail, waiting = pixels[..., end:], 0
            yield pixels[..., :end]
    if waiting:
        # The last piece is as long as the others, and begins with columns that are done already.
        pixels = decoder.decode_tokens(torch.stack(tuple(held), dim=1))
        if tail is not None:
            pixels = pixels[..., pixels.shape[3] - (waiting + pieces.overlap) * width :]
        yield _fade(tail, pixels)
    elif tail is not None:
        yield tail


def decode(decoder: Decoder, tokens: Tensor, pieces: Pieces = PIECES) -> Iterator[Tensor]:
    """Pictures uint8 [3, H, W] of tokens [B, L, C], one after the other, on the CPU.

    As many are decoded together as make one piece; a wider one is decoded alone, in pieces.
    """
    together = max(1, pieces.columns // tokens.shape[1])
    for some in tokens.split(together):
        strips = decode_strips(decoder, some.unbind(1), pieces)
        yield from torch.cat([images.to_uint8(strip).cpu() for strip in strips], dim=3)


def _fade(tail: Tensor | None, pixels: Tensor) -> Tensor:
    """The pixels of a piece, at whose beginning the last piece's tail gives way to it."""
    if tail is None:
        return pixels
    width = tail.shape[3]
    weight = (torch.arange(width, device=tail.device) + 0.5) / max(width, 1)
    faded = torch.lerp(tail, pixels[..., :width], weight.to(tail.dtype))
    return torch.cat([faded, pixels[..., width:]], dim=3)
