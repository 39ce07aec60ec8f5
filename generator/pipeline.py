"""From class labels to pictures: generator and tokenizer together.

Shapes: B batch, L columns, C token channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common import images, seeding
from common.errors import UserError
from generator.decoding import PIECES, Decoder, Pieces, decode, decode_strips
from generator.model import Generator
from generator.sampling import (
    RELEASED,
    Columns,
    Progress,
    Sampling,
    numbered,
    sample,
    sample_columns,
)

BLOCK = 64  # columns whose noise goes to the device together


class Tokenizer(Decoder, Protocol):
    """What is needed of a tokenizer to go on with given pictures; see `tokenizer.model`."""

    height: int

    def encode(self, images: Tensor) -> Any: ...

    def scaled(self, tokens: Tensor) -> Tensor: ...


def column_noise(
    seed: int, numbers: Sequence[int], channels: int, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """The starting noise [B, C] of images `numbers` of a seed, column by column without end.

    Each image has its own stream, laid out by column: it is the same in every batch, on every
    process, and a longer image begins with the noise of a shorter one.
    """
    streams = [seeding.stream(seed, "image", number) for number in numbers]
    while True:
        block = np.stack([stream.standard_normal((BLOCK, channels)) for stream in streams])
        noise = torch.from_numpy(block.astype(np.float32))
        if torch.device(device).type == "cuda":  # so that copying waits for nothing
            noise = noise.pin_memory()
        yield from noise.to(device, non_blocking=True).unbind(1)


def image_noise(
    seed: int,
    numbers: Sequence[int],
    columns: int,
    channels: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The first columns of `column_noise`, [B, L, C]."""
    noise = column_noise(seed, numbers, channels, device)
    return torch.stack(list(islice(noise, columns)), dim=1)


@torch.no_grad()
def generate(
    model: Generator,
    decoder: Decoder,
    labels: Sequence[int],
    numbers: Sequence[int],
    columns: int,
    sampling: Sampling = RELEASED,
    seed: int = 0,
    given: Columns | None = None,
    pieces: Pieces = PIECES,
    progress: Progress = iter,
) -> Iterator[Tensor]:
    """Images number `numbers` of classes `labels`, one after the other.

    Args:
        model, decoder: on one device.
        labels, numbers: of the B images.
        columns: L, any number ≥ 2; the images are L column widths wide.
        sampling: see `generator.sampling`.
        seed: of all noise.
        given: columns [B, C] that are not drawn, in the model's scale; see `sample_columns`.
        pieces: in which wide images are decoded.
        progress: is handed the columns while they are drawn, and passes them on.

    Returns:
        uint8 images [3, H, W] on the CPU.
    """
    device = model.device
    noise = image_noise(seed, numbers, columns, model.config.channels, device)
    classes = torch.tensor(labels, device=device)
    yield from decode(decoder, sample(model, classes, noise, sampling, given, progress), pieces)


@torch.no_grad()
def scroll(
    model: Generator,
    decoder: Decoder,
    labels: Sequence[int],
    numbers: Sequence[int],
    sampling: Sampling = RELEASED,
    seed: int = 0,
    pieces: Pieces = PIECES,
) -> Iterator[Tensor]:
    """Images without end, in uint8 strips [B, 3, H, w] from left to right at constant memory.

    Arguments are those of `generate`. A strip comes when its piece is drawn: the smaller
    `pieces`, the sooner.
    """
    device = model.device
    noise = column_noise(seed, numbers, model.config.channels, device)
    classes = torch.tensor(labels, device=device)
    columns = sample_columns(model, classes, noise, sampling)
    for strip in decode_strips(decoder, columns, pieces):
        yield images.to_uint8(strip).cpu()


def prefix_picture(path: Path, tokenizer: Tokenizer, side: str = "right") -> Tensor:
    """A picture to go on with: as high as the tokenizer's, and of whole columns.

    It keeps its proportions. What is left over beside whole columns is cut off at the end that is
    not continued.

    Returns:
        [1, 3, H, W] in [-1, 1].

    Raises:
        UserError: it cannot be read, or is narrower than two columns.
    """
    picture = images.resize_to_cover(images.read_rgb(path), tokenizer.height, 1)
    width = picture.shape[2] // tokenizer.column_width * tokenizer.column_width
    if width < 2 * tokenizer.column_width:
        raise UserError(
            f"{path}: {picture.shape[2]} pixels wide at a height of {tokenizer.height}, expected "
            f"at least two columns of {tokenizer.column_width}"
        )
    kept = picture[..., -width:] if side == "right" else picture[..., :width]
    return images.to_float(kept)[None]


@torch.no_grad()
def prefix_columns(pictures: Tensor, tokenizer: Tokenizer, side: str = "right") -> Columns:
    """Columns [B, C] of pictures [B, 3, H, W] in [-1, 1], with which images can go on.

    For the left side they are those of the mirrored pictures; see `continue_images`.
    """
    if side not in ("right", "left"):
        raise UserError(f"side: found {side!r}, expected right or left")
    mean = tokenizer.encode(pictures.flip(3) if side == "left" else pictures).mode()  # [B, M, C]
    return numbered(tokenizer.scaled(mean))


@torch.no_grad()
def continue_images(
    model: Generator,
    tokenizer: Tokenizer,
    pictures: Tensor,
    labels: Sequence[int],
    numbers: Sequence[int],
    columns: int,
    side: str = "right",
    sampling: Sampling = RELEASED,
    seed: int = 0,
    pieces: Pieces = PIECES,
) -> Iterator[Tensor]:
    """Given pictures, continued by some columns to the right or to the left.

    To the left means: the pictures are mirrored, encoded, continued to the right, and the result
    is mirrored back. Where the model was trained with random flips, as the paper's are, mirrored
    pictures are as likely to it as the pictures themselves, and their right is the left that is
    asked for; where it was not, it has never seen such pictures. They are encoded after mirroring
    because the encoder treats left and right alike only nearly.

    Args:
        model, tokenizer: on one device.
        pictures: [B, 3, H, W] in [-1, 1] on that device.
        columns: that are drawn beside each.
        side: `right` or `left`.
        labels, numbers, sampling, seed, pieces: see `generate`.

    Returns:
        uint8 images [3, H, W'] on the CPU; the given part is what the tokenizer makes of it.
    """
    given = prefix_columns(pictures, tokenizer, side)
    length = len(given) + columns
    for image in generate(model, tokenizer, labels, numbers, length, sampling, seed, given, pieces):
        yield image.flip(2) if side == "left" else image
