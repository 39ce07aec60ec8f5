"""Image data sets: labelled images from folders and from lists.

A data set has `__len__`, `class_names`, and `__getitem__(i) -> (uint8 [3, H, W], label)`. In
training `i` is a `Draw`, whose number seeds the crop and the flip: a draw looks the same whatever
the number of workers and processes, and after a resume.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from common import images
from common.config import Positive
from common.data.sampler import Draw
from common.errors import UserError, printable, refused
from common.seeding import stream

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# A line of a list; a suffix says where a path with spaces ends and a label, below 10⁶, begins.
ENTRY = re.compile(rf"(.*(?:{'|'.join(map(re.escape, SUFFIXES))}))(?:\s+(\d{{1,6}}))?", re.I)

log = logging.getLogger(__name__)


class ImageDataset(Dataset):
    """Images of a listing, resized until the crop just fits inside, then cut: `size` pixels high
    and, if not `width`, wide; to `train` anywhere, or as `random_crop` says, and with `flip` half
    of them mirrored. One that cannot be read is logged; the next readable one takes its place."""

    def __init__(
        self,
        source: str | Path,
        paths: Sequence[str],
        labels: Sequence[int],
        class_names: list[str],
        /,
        size: Positive,
        train: bool = False,
        flip: bool = True,
        seed: int = 0,
        width: Positive | None = None,
        interpolation: images.Interpolation = "bicubic",
        random_crop: bool | None = None,
    ) -> None:
        self.source, self.class_names = source, class_names
        self.height, self.width = size, width or size
        self.random_crop = train if random_crop is None else random_crop
        self.flip, self.seed, self.interpolation = train and flip, seed, interpolation
        # In one block of memory, which forked workers share: of a list of strings each would come
        # to hold a copy, because reading a string counts a reference inside it.
        self.paths, self.labels = np.array(list(map(os.fsencode, paths))), np.asarray(labels)
        # One flag an image, in memory that workers share: an image met twice counts once.
        self.unreadable_flags = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int | Draw) -> tuple[torch.Tensor, int]:
        """Image `i` as uint8 [3, size, width], and its label; an int is its own draw number."""
        index, number = i if isinstance(i, Draw) else (i, i)
        if not 0 <= index < len(self):
            raise IndexError(index)
        image, index = self._read(index)
        randomness = stream(self.seed, "crop", number)
        place = randomness if self.random_crop else None
        image = images.crop(image, self.height, self.width, place)
        if self.flip and randomness.random() < 0.5:
            image = image.flip(2)
        return image.contiguous(), int(self.labels[index])

    def _read(self, start: int) -> tuple[torch.Tensor, int]:
        """The first readable image from `start` on, around the end, resized, and its index."""
        for step in range(len(self)):
            index = (start + step) % len(self)
            if self.unreadable_flags[index]:
                continue
            path, size = os.fsdecode(self.paths[index]), (self.height, self.width)
            try:
                image = images.read_rgb(path)
                return images.resize_to_cover(image, *size, self.interpolation), index
            except UserError as error:
                self.unreadable_flags[index] = True
                reason = str(error).removeprefix(f"{path}: ")
                log.warning("%s; the next one takes its place", printable(f"{path}: {reason}"))
        raise UserError(f"{self.source}: none of its {len(self)} images can be read")


class ImageFolder(ImageDataset):
    """Images in `root/<class>/**`; labels count the class folders in the order of their names as
    strings (`10` before `2`)."""

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(root, *list_folder(Path(root)), **options)


class ImageList(ImageDataset):
    """Images listed in a text file: a path a line, maybe with a label, `forest/1.jpg 7`.

    Lines that are blank or begin with `#` are left out. All paths start from `root`, also if
    they begin with `/`, as in Places365; without it, relative ones start from the folder of
    the list. Without labels the class of an image is its folder as it is listed, and labels count
    these in the order of their names. Images that are missing, but for the first, are unreadable.
    """

    def __init__(self, file: str, root: str | None = None, **options: Any) -> None:
        try:
            text = Path(file).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise UserError(refused(error, file)) from None
        found: list[tuple[str, str | None]] = []
        for number, line in enumerate(map(str.strip, text.split("\n")), 1):
            entry = ENTRY.fullmatch(line)
            if entry is not None:
                found.append((entry[1] if root is None else entry[1].lstrip("/"), entry[2]))
            elif line and not line.startswith("#"):
                expected = "expected the path of an image and maybe, after a space, its label < 10⁶"
                raise UserError(f"{file}: line {number}: found {line!r}, {expected}")
        folder = os.path.dirname(file) if root is None else root
        paths = [os.path.join(folder, path) for path, _ in found]
        if not paths or not os.path.exists(paths[0]):
            raise UserError(f"{file}: found {paths[:1]}, expected images that are there")
        labels = [int(label) for _, label in found if label is not None]
        names = [str(label) for label in range(max(labels, default=-1) + 1)]
        if not labels:
            classes = [os.path.dirname(path) or "." for path, _ in found]
            names = sorted(set(classes))
            order = {name: label for label, name in enumerate(names)}
            labels = [order[name] for name in classes]
        if len(labels) < len(paths):
            raise UserError(f"{file}: found {len(labels)} labels, expected {len(paths)} or none")
        super().__init__(file, paths, labels, names, **options)


def list_folder(root: Path) -> tuple[list[str], list[int], list[str]]:
    """Every image in `root/<class>/**`, the class of each, and the names of the classes."""
    names = sorted(p.name for p in root.glob("*") if p.is_dir() and not p.name.startswith("."))
    found = [images_below(root / name) for name in names]
    if not all(found) or not found:
        raise UserError(f"{root}: expected a folder for each class, with images in every one")
    labels = [label for label, paths in enumerate(found) for _ in paths]
    return [path for paths in found for path in paths], labels, names


def images_below(
    folder: str | os.PathLike[str], above: tuple[tuple[int, int], ...] = ()
) -> list[str]:
    """Every image file in a folder and those inside it, in the order of their paths. Links are
    followed, but for those that lead back to a folder `above` (device and inode)."""
    status, found = os.stat(folder), []
    here = (status.st_dev, status.st_ino)
    if here in above:
        return []
    with os.scandir(folder) as entries:
        for entry in entries:
            named = entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
            if entry.is_dir():
                found += images_below(entry.path, (*above, here))
            elif named and entry.is_file():  # no pipe
                found.append(entry.path)
    return sorted(found)
