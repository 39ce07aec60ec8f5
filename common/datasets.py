"""Pictures with labels, and the order in which training draws them.

A data set has `__len__`, `class_names`, and `__getitem__(i) -> (uint8 [3, H, W], label)`. In
training `i` is a `Draw`, whose number seeds the crop and the flip: a draw looks the same whatever
the number of workers and processes, and after a resume.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from common import images
from common.errors import UserError
from common.seeding import stream

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"))

log = logging.getLogger(__name__)


class Draw(NamedTuple):
    """Picture `index`, drawn as the `number`-th of the whole training."""

    index: int
    number: int


def resize_to_cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale until `height` x `width` just fits inside; for a square, the short side is its size."""
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    # PIL's filters widen when shrinking, so that fine texture does not turn into false patterns.
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def crop(
    image: Image.Image, height: int, width: int, randomness: np.random.Generator | None
) -> Image.Image:
    """Cut `height` x `width` from a random place, or from the centre without `randomness`."""
    spare_x, spare_y = image.width - width, image.height - height
    if randomness is None:
        left, top = spare_x // 2, spare_y // 2
    else:
        left, top = (int(randomness.integers(spare + 1)) for spare in (spare_x, spare_y))
    return image.crop((left, top, left + width, top + height))


class ImageFolder(Dataset):
    """Pictures in `root/<class>/**`.

    Labels count the class folders in the order of their names as strings (`10` before `2`).

    A picture that cannot be read is logged and counted, and the next readable one of the data set
    takes its place; `unreadable` is how many have been met, by all workers together.

    Args:
        root: the folder of class folders.
        size: height of the crop in pixels.
        train: random crop and flip; otherwise the centre crop, not flipped.
        flip: flip horizontally with probability 1/2 in training.
        seed: for crops and flips.
        width: width of the crop; `size` if not given.

    Raises:
        UserError: `root` is missing, has no class folders, or one of them has no pictures.
    """

    def __init__(
        self,
        root: str,
        size: int,
        train: bool = False,
        flip: bool = True,
        seed: int = 0,
        width: int | None = None,
    ) -> None:
        self.root = Path(root)
        self.height, self.width = size, width or size
        self.train, self.flip, self.seed = train, flip, seed
        self.class_names = _class_folders(self.root)
        self.paths: list[str] = []
        self.labels: list[int] = []
        for label, name in enumerate(self.class_names):
            found = _pictures(self.root / name)
            if not found:
                raise UserError(f"{self.root / name}: a class folder without pictures")
            self.paths += found
            self.labels += [label] * len(found)
        # One flag a picture, in memory that workers share: a picture met twice counts once.
        self.unreadable_flags = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unreadable(self) -> int:
        """How many pictures could not be read so far."""
        return int(self.unreadable_flags.sum())

    def __getitem__(self, i: int | Draw) -> tuple[torch.Tensor, int]:
        """Picture `i` as uint8 [3, size, width], and its label; an int is its own draw number."""
        index, number = i if isinstance(i, Draw) else (i, i)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, index = self._read(index % len(self))
        image = resize_to_cover(image, self.height, self.width)
        randomness = stream(self.seed, "crop", number) if self.train else None
        image = crop(image, self.height, self.width, randomness)
        if randomness is not None and self.flip and randomness.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return images.to_tensor(image), self.labels[index]

    def _read(self, start: int) -> tuple[Image.Image, int]:
        """The first readable picture from `start` on, around the end, and its index."""
        for step in range(len(self)):
            index = (start + step) % len(self)
            if self.unreadable_flags[index]:
                continue
            try:
                return images.read_rgb(self.paths[index]), index
            except UserError as error:
                self.unreadable_flags[index] = True
                log.warning("%s; the next picture takes its place", error)
        raise UserError(f"{self.root}: none of its {len(self)} pictures can be read")


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one with a folder for each class")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{root}: found no folders in it, expected a folder for each class")
    return names


def _pictures(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )


class DrawSampler(Sampler[Draw]):
    """The draws of one process in one epoch.

    The order depends on `seed` and the epoch only; process `r` of `world` takes every `world`-th
    draw from the `r`-th on, so that the global batches are the same for any `world` with the same
    global batch size.

    Args:
        length: pictures in the data set.
        process_rank: which process this is.
        world: how many there are.
        batch_size: draws in a batch of one process.
        seed: for the order.
        shuffle: a new random order in each epoch; otherwise the order of the data set.
        drop_last: leave out the draws at the end that do not fill a batch on every process. If
            not, every draw belongs to one process, and some have one draw more than others.
    """

    def __init__(
        self,
        length: int,
        process_rank: int,
        world: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        if not 0 <= process_rank < world:
            raise ValueError(f"process_rank: found {process_rank}, expected 0..{world - 1}")
        self.length = length
        self.rank, self.world, self.batch_size = process_rank, world, batch_size
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a new one starts with its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0

    def resume(self, epoch: int, start_batch: int) -> None:
        """Start in the middle: leave out the first `start_batch` batches of this `epoch`."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Draws of this process in a whole epoch, whatever batch it starts with."""
        return len(range(self.rank, self._used(), self.world))

    def __iter__(self) -> Iterator[Draw]:
        if self.shuffle:
            order = stream(self.seed, "order", self.epoch).permutation(self.length)
        else:
            order = np.arange(self.length)
        first = self.rank + self.start_batch * self.batch_size * self.world
        for position in range(first, self._used(), self.world):
            yield Draw(int(order[position]), self.epoch * self.length + position)

    def _used(self) -> int:
        together = self.batch_size * self.world
        return self.length // together * together if self.drop_last else self.length
