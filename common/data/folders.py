"""Pictures with labels.

A data set has `__len__`, `class_names`, and `__getitem__(i) -> (uint8 [3, H, W], label)`. In
training `i` is a `Draw`, whose number seeds the crop and the flip: a draw looks the same whatever
the number of workers and processes, and after a resume.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from common import images
from common.data.sampler import Draw
from common.errors import UserError
from common.seeding import stream

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"))

log = logging.getLogger(__name__)


class Listing(NamedTuple):
    """The files of a data set, with the class of each."""

    paths: Sequence[str]
    labels: Sequence[int]
    class_names: list[str]


class Paths(Sequence[str]):
    """File names in one block of memory, which forked workers share.

    A list of strings each worker would come to hold for itself, because reading a string counts a
    reference inside it: gigabytes, for a million pictures and the workers of eight GPUs.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int | slice) -> str | list[str]:
        index = range(len(self))[i]
        if isinstance(i, slice):
            return [self[k] for k in index]
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


class ImageDataset(Dataset):
    """Pictures from files, resized until the crop just fits inside, then cut.

    A picture that cannot be read is logged and counted, and the next readable one of the data set
    takes its place; `unreadable` is how many have been met, by all workers together.

    Args:
        source: where they come from, for messages.
        listing: their files and classes.
        size: height of the crop in pixels.
        width: width of the crop; `size` if not given.
        random_crop: a crop at a random place; otherwise the centre.
        flip: flip horizontally with probability 1/2.
        seed: for crops and flips.
        interpolation: between pixels, when resizing; see `images.resize_to_cover`.
    """

    def __init__(
        self,
        source: str | Path,
        listing: Listing,
        size: int,
        width: int | None = None,
        random_crop: bool = False,
        flip: bool = False,
        seed: int = 0,
        interpolation: images.Interpolation = "bicubic",
    ) -> None:
        self.source, self.height, self.width = source, size, size if width is None else width
        for name, value in (("size", self.height), ("width", self.width)):
            if value < 1:
                raise UserError(f"{name}: found {value}, expected at least 1 pixel")
        self.random_crop, self.flip, self.seed = random_crop, flip, seed
        self.interpolation = interpolation
        self.train = random_crop or flip
        self.paths = Paths(listing.paths)
        self.labels = np.asarray(listing.labels)
        self.class_names = listing.class_names
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
        picture, index = self._read(index % len(self))
        image = images.resize_to_cover(picture, self.height, self.width, self.interpolation)
        randomness = stream(self.seed, "crop", number) if self.train else None
        place = randomness if self.random_crop else None
        image = images.crop(image, self.height, self.width, place)
        if self.flip and randomness.random() < 0.5:
            image = image.flip(2)
        return image.contiguous(), int(self.labels[index])

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
        raise UserError(f"{self.source}: none of its {len(self)} pictures can be read")


class ImageFolder(ImageDataset):
    """Pictures in `root/<class>/**`.

    Labels count the class folders in the order of their names as strings (`10` before `2`).

    Args:
        root: the folder of class folders.
        size: height of the crop in pixels.
        train: random crop and flip; otherwise the centre crop, not flipped.
        flip: flip horizontally with probability 1/2 in training.
        seed: for crops and flips.
        width: width of the crop; `size` if not given.
        interpolation: when resizing: bicubic, pil_bilinear or cv2_bilinear.

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
        interpolation: images.Interpolation = "bicubic",
    ) -> None:
        listing = list_folder(Path(root))
        super().__init__(root, listing, size, width, train, train and flip, seed, interpolation)


def list_folder(root: Path) -> Listing:
    """Every picture in `root/<class>/**`; see `ImageFolder`."""
    names = class_folders(root)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = pictures_below(root / name)
        if not found:
            raise UserError(f"{root / name}: a class folder without pictures")
        paths += found
        labels += [label] * len(found)
    return Listing(paths, labels, names)


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, in order."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one with a folder for each class")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{root}: found no folders in it, expected a folder for each class")
    return names


def pictures_below(folder: Path) -> list[str]:
    """Every picture in a folder and those inside it, in the order of their paths."""
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    )


Pictures = ImageDataset  # the name of before, until its callers are renamed
