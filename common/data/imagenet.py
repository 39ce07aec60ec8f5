"""ImageNet as it lies on disk for latent diffusion, and as released configuration files ask for it.

A part is `IMAGENET_PATH/autoencoders/data/ILSVRC2012_train` or `.../ILSVRC2012_validation`; its
images are `data/<synset>/*.JPEG`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Positive
from common.data.folders import ImageDataset, list_folder
from common.errors import UserError


@dataclass(frozen=True)
class ImageNetConfig:
    """`config` in released files."""

    datadir: str  # the IMAGENET_PATH
    size: Positive | None = None  # height of the images in pixels
    random_crop: bool | None = None  # a crop at a random place, or the centre


class ImageNetTrain(ImageDataset):
    """The training images; labels count the synsets in the order of their names.

    `config` has `datadir`, and maybe `random_crop` and `size`, which may be given beside it too.
    """

    part, train = "ILSVRC2012_train", True

    def __init__(
        self, config: ImageNetConfig, size: Positive | None = None, **options: Any
    ) -> None:
        size = config.size or size
        if size is None:
            raise UserError("size: missing; expected the height of the images in pixels")
        root = Path(config.datadir, "autoencoders", "data", self.part, "data")
        options = {"train": self.train, "random_crop": config.random_crop, **options}
        super().__init__(root, *list_folder(root), size=size, **options)


class ImageNetValidation(ImageNetTrain):
    """The validation images: by default centre crops, not flipped; see `ImageNetTrain`."""

    part, train = "ILSVRC2012_validation", False
