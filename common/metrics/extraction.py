"""Image sets, and the features of them that all processes extract together.

Features are put in one shuffled order of the images, whatever the number of processes: parts of a
set that is sorted by class would not be alike.

Shapes: N images, B of a batch, H W pixels, D features, K classes.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import config, distributed, images
from common.data.folders import ImageDataset, Paths, images_below
from common.distributed import Process
from common.errors import UserError
from common.logger import UnreadableImages, progress_bar
from common.metrics.features import Extractor

LOSSY = ("JPEG", "MPO", "WEBP")
CROPS = ("center", "adm-center")
YAML = (".yaml", ".yml")
Batch: TypeAlias = Tensor | list[Tensor]  # uint8 [B, 3, H, W]; B times [3, H, W] where sizes differ


class Crop(NamedTuple):
    """A way to make a square of an image: `center`, as data sets here do, or `adm-center`."""

    kind: str
    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        size = self.size
        if self.kind == "adm-center":
            return images.adm_crop(image, size)
        return images.crop(images.resize_to_cover(image, size, size), size, size, None).contiguous()


class ImageSet(Dataset):
    """Images to measure: uint8 [3, H, W], and whether they went through lossy compression.

    Args:
        items: files, or a data set of images and labels without random crops.
        source: where they come from, for messages and records.
        crop: how to cut files, which are then photographs and may well be JPEGs; without it, the
            pixels are as they are.
        strict: refuse lossy files, and those of another size than the first.
    """

    def __init__(
        self, items: Any, source: str, crop: Crop | None = None, strict: bool = False
    ) -> None:
        self.source, self.crop, self.size = source, crop, None
        self.dataset = items if isinstance(items, Dataset) else None
        self.paths = None if self.dataset else Paths([os.fspath(path) for path in items])
        if strict:
            self.size = images.read_rgb(items[0]).size
            self[0]  # whose format may be wrong too

    def __len__(self) -> int:
        return len(self.paths or self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> tuple[Tensor, bool]:
        if self.paths is None:
            return self.dataset[i][0], False  # type: ignore[index]
        path = str(self.paths[i])
        image = images.read_rgb(path)
        if self.crop is not None:
            return self.crop(image), False
        with Image.open(path) as file:  # reads the heading only
            lossy = file.format in LOSSY
        if self.size is not None and (lossy or image.size != self.size):
            found = f"{'lossy' if lossy else 'lossless'}, {image.width} x {image.height} pixels"
            raise UserError(f"{path}: found {found}; expected lossless as the first, {self.size}")
        return images.to_tensor(image), lossy

    def describe(self) -> dict[str, Any]:
        """Plain values, for a record."""
        how = "as they are" if self.dataset is None else "crops of the data set"
        if self.crop:
            how = f"{self.crop.kind} crop of {self.crop.size} x {self.crop.size}"
        return {"source": self.source, "images": len(self), "preparation": how}

    def replaced(self, process: Process) -> list[str]:
        """A warning of images that a data set could not read; all processes call this together."""
        message = UnreadableImages(self.dataset or self, self.source, process.device).news()
        return [] if message is None else [" ".join(message.split())]


def open_images(
    source: str | Path,
    crop: Crop | None = None,
    part: str = "validation",
    overrides: Sequence[str] = (),
    strict: bool = False,
) -> ImageSet:
    """The images below a folder, or of `data.params.<part>` of a YAML file and `key=value` over it.

    Without a `crop`, images of a folder stay as they are, and a data set has its own crops.

    Raises:
        UserError: there are none, or they would change from one reading to the next.
    """
    source = Path(source)
    if source.suffix not in YAML:
        paths = images_below(source) if source.is_dir() else []
        if not paths:
            raise UserError(f"{source}: found no images, expected a folder of them or a YAML file")
        return ImageSet(paths, str(source), crop, strict)
    key = f"data.params.{part}"
    node = OmegaConf.select(config.load(source, overrides), key)
    if not isinstance(node, DictConfig):
        raise UserError(f"{source}: has no {key}; expected a data set, target and params")
    dataset = config.instantiate(node, key)
    name = f"{source}: {json.dumps(OmegaConf.to_container(node, resolve=True))}"
    if crop is not None:
        if not isinstance(dataset, ImageDataset):
            raise UserError(f"--img_size: given, but {key} in {source} has no files to cut")
        return ImageSet(dataset.paths, name, crop)
    if getattr(dataset, "random_crop", False) or getattr(dataset, "flip", False):
        raise UserError(f"{source}: {key} has random crops or flips; expected none, or --img_size")
    return ImageSet(dataset, name)


@dataclass(frozen=True)
class Features:
    """What a network sees in a set of images, shuffled: float32 `pooled` [N, D] and `logits`
    [N, K], and `oddities`, a sentence for each thing that a reader of figures must know."""

    pooled: Tensor
    logits: Tensor
    oddities: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pooled)


class Collector:
    """Collects features batch by batch, then those of all processes."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.rows = [torch.empty(0, extractor.width + extractor.classes)]
        self.facts = [torch.empty(0, 4, dtype=torch.int64)]  # number, height, width, lossy

    def add(self, pixels: Batch, numbers: Sequence[int], lossy: Sequence[bool] = ()) -> None:
        """Add uint8 images [B, 3, H, W] that have these numbers in their set."""
        self.rows.append(self.extractor(pixels).cpu())
        about = zip(numbers, pixels, lossy or [False] * len(pixels), strict=True)
        self.facts.append(torch.tensor([[k, *image.shape[1:], bad] for k, image, bad in about]))

    def features(self) -> Features | None:
        """Of all processes together, on the first one; None elsewhere. All call this together."""
        device, width = self.extractor.device, self.extractor.width
        rows, facts = (
            distributed.gather(torch.cat(parts).to(device)) for parts in (self.rows, self.facts)
        )
        if rows is None or facts is None:
            return None
        rows, facts = rows.cpu()[facts[:, 0].argsort().cpu()], facts.cpu()
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
        sizes = facts[:, 1:3].unique(dim=0, return_counts=True)[1]
        counts = {
            "are JPEG or WebP, whose compression changes every figure": int(facts[:, 3].sum()),
            "are of another size than most": len(facts) - int(sizes.max()),
        }
        odd = (f"{count} of {len(facts)} images {what}" for what, count in counts.items() if count)
        return Features(rows[:, :width], rows[:, width:], tuple(odd))


def extract(
    images: ImageSet,
    extractor: Extractor,
    process: Process,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Features | None:
    """Features of all images on the first process, None elsewhere.

    Which images form a batch does not depend on the number of processes.
    """
    count, collector = len(images), Collector(extractor)
    whole = [range(k, min(k + batch_size, count)) for k in range(0, count, batch_size)]
    mine = whole[process.rank :: process.world]
    loader = DataLoader(
        images,
        batch_sampler=mine,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=process.device.type == "cuda",
    )
    with progress_bar(count, "features", "image", process.is_main) as bar:
        for numbers, (pixels, lossy) in zip(mine, loader, strict=True):
            collector.add(pixels, numbers, lossy)
            # what the others have done meanwhile counts too
            bar.update(min(numbers.start + process.world * batch_size, count) - bar.n)
    return collector.features()


def _collate(items: list[tuple[Tensor, bool]]) -> tuple[Batch, list[bool]]:
    pixels, lossy = map(list, zip(*items, strict=True))
    alike = len({image.shape for image in pixels}) == 1
    return (torch.stack(pixels) if alike else pixels), lossy
