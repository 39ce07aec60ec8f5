"""Sets of images to measure: a folder, files, or the data set of a YAML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common import config, images
from common.data.folders import Pictures, pictures_below
from common.distributed import Process
from common.errors import UserError
from common.logger import Unreadable
from common.metrics.extraction import Crops, Files

CROPS = ("center", "adm-center")
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Crop:
    """A named way to make a square of a picture.

    Args:
        kind: `center`, as data sets and training here do it, or `adm-center`, as ADM did.
        size: of the square in pixels.
    """

    kind: str
    size: int

    def __call__(self, picture: Image.Image) -> Tensor:
        """RGB → uint8 [3, size, size]."""
        if self.kind == "adm-center":
            return images.adm_crop(picture, self.size)
        covering = images.resize_to_cover(picture, self.size, self.size)
        return images.crop(covering, self.size, self.size, None).contiguous()


@dataclass(frozen=True)
class Images:
    """A set of images to read, and what a record must say of it."""

    dataset: Dataset
    source: str
    preparation: str

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "images": len(self.dataset),
            "preparation": self.preparation,
        }

    def oddities(self, process: Process) -> list[str]:
        """Pictures of a data set that others had to replace; all processes call this together."""
        dataset = self.dataset.dataset if isinstance(self.dataset, Crops) else self.dataset
        message = Unreadable(dataset, self.source, process.device).news()
        return [] if message is None else [" ".join(message.split())]


def open_images(
    source: str | Path,
    crop: Crop | None = None,
    part: str = "validation",
    overrides: Sequence[str] = (),
    strict: bool = False,
) -> Images:
    """The images of a folder, or of the data set in a YAML file.

    Args:
        source: a folder, whose pictures are taken with those in folders inside it, or a YAML file.
        crop: how to cut them. Without it, pictures of a folder stay as they are, and a data set
            has its own crops.
        part: `data.params.<part>` of the YAML file.
        overrides: `key=value` over the YAML file.
        strict: see `Files`.

    Raises:
        UserError: there are none, or they would change from one reading to the next.
    """
    source = Path(source)
    if source.suffix in YAML:
        return _of_yaml(source, crop, f"data.params.{part}", overrides)
    if overrides:
        raise UserError(f"override {overrides[0]!r}: given with {source}, expected a YAML file")
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected a folder of images, or a YAML file")
    paths = pictures_below(source)
    if not paths:
        raise UserError(f"{source}: found no images in it; expected PNG files or the like")
    return of_files(paths, str(source), crop, strict)


def of_files(
    paths: Sequence[str | Path], source: str, crop: Crop | None = None, strict: bool = False
) -> Images:
    """Images of these files, which `source` names; see `open_images`."""
    if crop is None:
        return Images(Files(paths, strict=strict), source, "as they are")
    dataset = Files(paths, crop, strict)
    return Images(dataset, source, f"{crop.kind} crop of {crop.size} x {crop.size}")


def _of_yaml(source: Path, crop: Crop | None, key: str, overrides: Sequence[str]) -> Images:
    node = OmegaConf.select(config.load(source, overrides), key)
    if not isinstance(node, DictConfig):
        raise UserError(f"{source}: has no {key}; expected a data set, target and params")
    dataset = config.instantiate(node, key)
    plain = json.dumps(OmegaConf.to_container(node, resolve=True))
    if crop is not None:
        if not isinstance(dataset, Pictures):
            raise UserError(f"--crop: given, but {key} in {source} has no picture files to cut")
        return of_files(dataset.paths, f"{source}: {plain}", crop)
    if getattr(dataset, "train", False):
        raise UserError(
            f"{source}: {key} draws random crops or flips; expected a data set without them, or "
            "--crop and --img_size"
        )
    return Images(Crops(dataset), f"{source}: {plain}", "crops of the data set")
