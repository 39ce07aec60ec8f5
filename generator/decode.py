"""Tiled decoding: from columns to pixels at constant memory, however wide the image.

The tokenizer's decoder normalises and attends over the whole width, so tiles differ a little from
the whole; neighbouring tiles share columns, over which one fades into the other.

Shapes: B batch, L columns, C token channels, H W pixels.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from common import images
from generator.data import Tokenizer
from generator.sampling import SampleConfig


def decode_strips(
    tokenizer: Tokenizer, columns: Iterable[Tensor], config: SampleConfig
) -> Iterator[Tensor]:
    """Strips [B, 3, H, w] of varying width, from left to right, as soon as their columns [B, C]
    are there, with or without an end.

    `decode_columns` are decoded at once, and `decode_overlap` of them shared by two neighbouring
    tiles; an image that has no more is decoded whole, as released.
    """
    width, size, overlap = tokenizer.column_width, config.decode_columns, config.decode_overlap
    held: deque[Tensor] = deque(maxlen=size)
    waiting = 0  # columns that are in no tile yet
    tail: Tensor | None = None  # the end of the last tile, over which the next one fades in
    for token in columns:
        held.append(token)
        waiting += 1
        if waiting == size - (0 if tail is None else overlap):
            pixels = _fade(tail, tokenizer.decode_tokens(torch.stack(tuple(held), dim=1)))
            end = pixels.shape[3] - overlap * width
            tail, waiting = pixels[..., end:], 0
            yield pixels[..., :end]
    if waiting:
        # The last tile is as wide as the others, and begins with columns that are done already.
        pixels = tokenizer.decode_tokens(torch.stack(tuple(held), dim=1))
        if tail is not None:
            pixels = pixels[..., pixels.shape[3] - (waiting + overlap) * width :]
        yield _fade(tail, pixels)
    elif tail is not None:
        yield tail


def decode(tokenizer: Tokenizer, tokens: Tensor, config: SampleConfig) -> Iterator[Tensor]:
    """Images uint8 [3, H, W] of tokens [B, L, C], one after the other, on the CPU.

    As many are decoded together as make one tile; a wider one is decoded alone, in tiles.
    """
    for some in tokens.split(max(1, config.decode_columns // tokens.shape[1])):
        strips = decode_strips(tokenizer, some.unbind(1), config)
        yield from torch.cat([images.to_uint8(strip).cpu() for strip in strips], dim=3)


def _fade(tail: Tensor | None, pixels: Tensor) -> Tensor:
    """The pixels of a tile, at whose beginning the last tile's tail gives way to it."""
    if tail is None:
        return pixels
    width = tail.shape[3]
    weight = (torch.arange(width, device=tail.device) + 0.5) / max(width, 1)
    faded = torch.lerp(tail, pixels[..., :width], weight.to(tail.dtype))
    return torch.cat([faded, pixels[..., width:]], dim=3)
