"""ImageNet as it lies on disk for latent diffusion, and as released configuration files ask for it.

A part is `IMAGENET_PATH/autoencoders/data/ILSVRC2012_train` or `.../ILSVRC2012_validation`. Its
images are `data/<synset>/*.JPEG`, and `filelist.txt` beside `data` lists them.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from common import images
from common.config import Positive, structured
from common.data.folders import ImageDataset, Listing, class_folders, list_folder, read_list
from common.errors import UserError
from common.io import replacing

BELOW = Path("autoencoders") / "data"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageNetConfig:
    """`config` in released files."""

    datadir: str | None = None  # the IMAGENET_PATH
    size: Positive | None = None  # height of the images in pixels
    random_crop: bool | None = None  # a crop at a random place, or the centre


class ImageNetTrain(ImageDataset):
    """The training images; labels count the synsets in the order of their names.

    `config` has `datadir`, and maybe `random_crop` (default true) and `size`, which may also be
    given beside it; other arguments as of `ImageDataset`, `flip` by default true.
    """

    part, train = "ILSVRC2012_train", True

    def __init__(
        self,
        config: ImageNetConfig | None = None,
        size: Positive | None = None,
        flip: bool | None = None,
        seed: int = 0,
        width: Positive | None = None,
        interpolation: images.Interpolation = "bicubic",
    ) -> None:
        settings = structured(ImageNetConfig, config or {}, "config")
        size = settings.size or size
        if size is None or not settings.datadir:
            name = "datadir" if size else "size"
            raise UserError(
                f"config.{name}: missing; expected the folder above {BELOW}, and pixels"
            )
        roots = [Path(settings.datadir) / BELOW / self.part, Path(settings.datadir) / self.part]
        root = next((root for root in roots if (root / "data").is_dir()), None)
        if root is None:
            raise UserError(f"config.datadir: no such folder {roots[0] / 'data'}")
        crop, flip = (self.train if x is None else x for x in (settings.random_crop, flip))
        super().__init__(root, _listing(root), size, width, crop, flip, seed, interpolation)


class ImageNetValidation(ImageNetTrain):
    """The validation images: by default centre crops, not flipped; see `ImageNetTrain`."""

    part, train = "ILSVRC2012_validation", False


def _listing(root: Path) -> Listing:
    """The images in `root/data`, as `root/filelist.txt` has them; it is written if need be."""
    data, path = root / "data", root / "filelist.txt"
    try:
        if not path.exists():
            if not os.access(root, os.W_OK):
                raise PermissionError("the folder cannot be written")
            # Many processes start together, on many machines; one of them walks the folders.
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    found = [os.path.relpath(name, data) for name in list_folder(data).paths]
                    with replacing(path) as file:
                        file.write(os.fsencode("".join(f"{name}\n" for name in found)))
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        log.warning("%s: not kept (%s); every process walks the folders", path, error)
        return list_folder(data)
    listing, folders = read_list(path, data), class_folders(data)
    if listing.class_names != folders:
        name = min(set(listing.class_names) ^ set(folders))
        raise UserError(f"{path}: {name} is in one of the list and {data} only; remove the list")
    return listing
