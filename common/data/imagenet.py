"""ImageNet as it lies on disk for latent diffusion, and as released configuration files ask for it.

A part is `IMAGENET_PATH/autoencoders/data/ILSVRC2012_train` or `.../ILSVRC2012_validation`. Its
pictures are `data/<synset>/*.JPEG`, and `filelist.txt` beside `data` lists them.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from common import images
from common.coerce import Mismatch, coerce, describe
from common.config import check_keys
from common.data.folders import Listing, Pictures, class_folders, list_folder
from common.data.lists import parse, read_lines
from common.errors import UserError
from common.io import replacing

TRAIN, VALIDATION = "ILSVRC2012_train", "ILSVRC2012_validation"
BELOW = Path("autoencoders") / "data"
SETTINGS = {"datadir": str, "size": int, "random_crop": bool}

log = logging.getLogger(__name__)


class _ImageNet(Pictures):
    def __init__(
        self,
        part: str,
        config: dict | None,
        size: int | None,
        width: int | None,
        random_crop: bool,
        flip: bool,
        seed: int,
        interpolation: images.Interpolation,
    ) -> None:
        settings = _settings(config, size)
        root = _locate(settings["datadir"], part)
        crop = settings.get("random_crop", random_crop)
        super().__init__(
            root, _listing(root), settings["size"], width, crop, flip, seed, interpolation
        )


class ImageNetTrain(_ImageNet):
    """The training pictures. Labels count the synsets in the order of their names.

    Args:
        config: `datadir` (the IMAGENET_PATH), and maybe `size` and `random_crop` (default true;
            otherwise the centre crop).
        size: height of the crop in pixels, if `config` does not give it.
        flip: flip horizontally with probability 1/2.
        seed: for crops and flips.
        width: width of the crop; `size` if not given.

    Raises:
        UserError: naming the key of `config`, or what is missing in `datadir`.
    """

    def __init__(
        self,
        config: dict | None = None,
        size: int | None = None,
        flip: bool = True,
        seed: int = 0,
        width: int | None = None,
        interpolation: images.Interpolation = "bicubic",
    ) -> None:
        super().__init__(TRAIN, config, size, width, True, flip, seed, interpolation)


class ImageNetValidation(_ImageNet):
    """The validation pictures: centre crops, never flipped; see `ImageNetTrain`."""

    def __init__(
        self,
        config: dict | None = None,
        size: int | None = None,
        seed: int = 0,
        width: int | None = None,
        interpolation: images.Interpolation = "bicubic",
    ) -> None:
        super().__init__(VALIDATION, config, size, width, False, False, seed, interpolation)


def _settings(config: dict | None, size: int | None) -> dict[str, Any]:
    settings = dict(config or {})
    check_keys(settings, SETTINGS, "config")
    for key, kind in SETTINGS.items():
        if settings.get(key) is None:
            settings.pop(key, None)
            continue
        try:
            settings[key] = coerce(settings[key], kind)
        except Mismatch:
            found = settings[key]
            raise UserError(
                f"config.{key}: found {found!r} ({type(found).__name__}), expected {describe(kind)}"
            ) from None
    if size is not None and settings.setdefault("size", size) != size:
        raise UserError(f"config.size: found {settings['size']}, but size beside it is {size}")
    if "size" not in settings:
        raise UserError("config.size: missing; expected the height of the pictures in pixels")
    if "datadir" not in settings:
        raise UserError(f"config.datadir: missing; expected the folder above {BELOW}/{TRAIN}")
    return settings


def _locate(datadir: str, part: str) -> Path:
    """The folder of a part, below IMAGENET_PATH or directly in the folder given."""
    for root in (Path(datadir) / BELOW / part, Path(datadir) / part):
        if (root / "data").is_dir():
            return root
    raise UserError(
        f"config.datadir: found no {BELOW}/{part}/data in {datadir}, expected this folder with "
        "<synset>/*.JPEG in it"
    )


def _listing(root: Path) -> Listing:
    """The pictures in `root/data`, as `root/filelist.txt` has them; it is written if need be."""
    data, path = root / "data", root / "filelist.txt"
    if not path.exists():
        try:
            _keep_list(data, path)
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            if os.environ.get("RANK", "0") == "0":
                log.warning("%s: not kept (%s); every process walks the folders", path, error)
            return list_folder(data)
    listing, folders = parse(read_lines(path), data, path, rooted=True), class_folders(data)
    if listing.class_names != folders:
        name = min(set(listing.class_names) ^ set(folders))
        raise UserError(
            f"{path}: lists {len(listing.class_names)} class folders, but {data} has "
            f"{len(folders)}: {name} is in one of them only; remove the list to have it made anew, "
            "or read your own choice of pictures with common.data.lists.ImageList"
        )
    return listing


def _keep_list(data: Path, path: Path) -> None:
    """Write the list of the pictures in `data`, a path relative to `data` a line."""
    if not os.access(path.parent, os.W_OK):
        raise PermissionError("the folder cannot be written")
    # Many processes start together, on many machines; one of them walks the folders.
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        start = len(str(data)) + 1
        lines = (f"{found[start:]}\n" for found in list_folder(data).paths)
        with replacing(path) as file:
            file.write(os.fsencode("".join(lines)))
