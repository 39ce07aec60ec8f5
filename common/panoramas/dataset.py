"""Panoramas: the built-in data set, endless landscapes of nine classes painted by NumPy."""

from typing import Annotated

import numpy as np
import torch
from torch.utils.data import Dataset

from common.config import Positive, limits
from common.panoramas.canvas import View, derive
from common.panoramas.scenes import SCENES

CLASS_NAMES = tuple(SCENES)
STRIPS = 2**16  # a data set crops from that many strips of each class,
SPAN = 2**12  # from as many image heights of each


def render(
    class_name: str, seed: int, strip: int, left: int, height: int, width: int
) -> np.ndarray:
    """Columns `left` to `left + width` of an endless strip, uint8 [height, width, 3].

    A pixel depends on its place in the strip alone: overlapping windows agree in every bit, on
    every machine. Lengths scale with the height, 32 to 256: twice the `left`, `height` and `width`
    show the same scene, sharper. `seed` is of the whole world, and `strip` of one strip in it.
    """
    x = (np.arange(left, left + width) + 0.5) / height
    y = 1 - (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    image = SCENES[class_name](View(derive(seed, class_name, strip), x, y, height))  # [3, H, W]
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


class Panoramas(Dataset):
    """Crops at random places of random strips; image k is of class k modulo their number.

    The same (seed, k) is the same image on every machine and for any number of workers, and the
    same scene at every size. `size` is the height in pixels, and the `width` if that is None.
    Another seed is another world, so a validation set is this class with its own seed. A process
    keeps what it has painted, length · 3 · size · width bytes.
    """

    def __init__(
        self,
        length: Positive = 8192,
        size: Annotated[int, limits(min=32, max=256)] = 64,
        width: Annotated[int, limits(min=32)] | None = None,
        seed: int = 0,
    ) -> None:
        self.length, self.size, self.width = length, size, width or size
        self.seed, self.class_names = seed, list(CLASS_NAMES)
        self._painted: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int | tuple) -> tuple[torch.Tensor, int]:
        """Image (uint8 [3, H, W]) and label; of a `Draw` only the index counts."""
        index = index[0] if isinstance(index, tuple) else int(index)
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} of a data set of {self.length} images")
        label = index % len(CLASS_NAMES)
        if index not in self._painted:
            strip = derive(self.seed, "strip", index) % STRIPS
            left = derive(self.seed, "left", index) % SPAN * self.size
            image = render(CLASS_NAMES[label], self.seed, strip, left, self.size, self.width)
            self._painted[index] = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(self._painted[index].copy()), label
