"""The built-in data set: endless painted landscapes of nine kinds, drawn with NumPy alone."""

from __future__ import annotations

import mmap

import numpy as np
import torch
from torch.utils.data import Dataset

from common.errors import UserError
from common.panoramas.canvas import View
from common.panoramas.noise import derive
from common.panoramas.scenes import SCENES

CLASS_NAMES = tuple(SCENES)
SIZES = range(32, 257)
STRIPS = 2**16  # a data set crops from that many strips of each class,
SPAN = 2**12  # from as many image heights of each


def render(
    class_name: str, seed: int, strip: int, left: int, height: int, width: int
) -> np.ndarray:
    """Columns `left` to `left + width` of an endless strip.

    A pixel depends on its place in the strip alone: overlapping windows agree in every bit, on
    every machine. Lengths scale with the height: twice the `left`, `height` and `width` show the
    same scene, sharper.

    Args:
        class_name: one of `CLASS_NAMES`.
        seed: of the whole world.
        strip: number of the strip.
        left: first column, at least 0.
        height: 32 to 256 pixels.
        width: at least 1 pixel.

    Returns:
        uint8 [height, width, 3].

    Raises:
        UserError: an argument is outside its range.
    """
    if class_name not in SCENES:
        raise UserError(f"class_name: found {class_name!r}, expected one of {', '.join(SCENES)}")
    _check("left", left, 0)
    _check("height", height, SIZES.start, SIZES[-1])
    _check("width", width, 1)
    x = (np.arange(left, left + width) + 0.5) / height
    y = 1 - (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    image = SCENES[class_name](View(derive(seed, class_name, strip), x, y, height))  # [3, H, W]
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


class Panoramas(Dataset):
    """Crops at random places of random strips; image k is of class k modulo their number.

    The same (seed, k) is the same image on every machine and for any number of workers, and the
    same scene at every size.

    Args:
        length: number of images.
        size: height in pixels, 32 to 256.
        width: in pixels, 32 or more; the height if None.
        seed: another seed is another world, so a validation set is this class with its own seed.
        cache: whether to keep drawn images (length · 3 · size · width bytes), so that an image is
            drawn once for all epochs and all forked workers.

    Raises:
        UserError: an argument is outside its range.
    """

    def __init__(
        self,
        length: int = 8192,
        size: int = 64,
        width: int | None = None,
        seed: int = 0,
        cache: bool = True,
    ) -> None:
        _check("length", length, 1)
        _check("size", size, SIZES.start, SIZES[-1])
        self.width = size if width is None else width
        _check("width", self.width, SIZES.start)
        self.length, self.size, self.seed = length, size, seed
        self.class_names = list(CLASS_NAMES)
        self.cache = _SharedImages(length, (3, size, self.width)) if cache else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int | tuple) -> tuple[torch.Tensor, int]:
        """Image (uint8 [3, H, W]) and label; of a `Draw` only the index counts."""
        index = index[0] if isinstance(index, tuple) else int(index)
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} of a data set of {self.length} images")
        image = self.cache.get(index) if self.cache else None
        if image is None:
            image = self._draw(index)
            if self.cache:
                self.cache.put(index, image)
        return torch.from_numpy(image), index % len(CLASS_NAMES)

    def _draw(self, index: int) -> np.ndarray:
        name = CLASS_NAMES[index % len(CLASS_NAMES)]
        strip = derive(self.seed, "strip", index) % STRIPS
        left = derive(self.seed, "left", index) % SPAN * self.size
        image = render(name, self.seed, strip, left, self.size, self.width)
        return np.ascontiguousarray(image.transpose(2, 0, 1))


class _SharedImages:
    """Images in anonymous shared memory: what a forked worker stores, every process sees.

    The memory is taken as it fills. A pickled copy, for a worker that is spawned, starts empty.
    """

    def __init__(self, length: int, shape: tuple[int, ...]) -> None:
        self.length, self.shape = length, shape
        size = int(np.prod(shape))
        try:
            memory = np.frombuffer(mmap.mmap(-1, length * (size + 1)), dtype=np.uint8)
        except (OSError, OverflowError, ValueError) as error:
            gib = length * size / 2**30
            raise UserError(
                f"cache: found true, but {gib:.0f} GiB do not fit; use false"
            ) from error
        self.filled, self.images = memory[:length], memory[length:].reshape(length, *shape)

    def get(self, index: int) -> np.ndarray | None:
        return self.images[index].copy() if self.filled[index] else None

    def put(self, index: int, image: np.ndarray) -> None:
        self.images[index] = image
        self.filled[index] = 1  # last, so that no other process reads half an image

    def __reduce__(self) -> tuple:
        return _SharedImages, (self.length, self.shape)


def _check(name: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        expected = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"{name}: found {value}, expected {expected}")
