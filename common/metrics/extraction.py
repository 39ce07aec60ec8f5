"""Image sets, and the features of them that all processes extract together.

Shapes: N images, B of a batch, H W pixels, D features, K classes.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import config, distributed, images
from common.data.folders import images_below
from common.distributed import Process
from common.errors import UserError
from common.logger import progress_bar
from common.metrics.features import Extractor
from common.metrics.fid import Statistics
from common.signals import ignore_signals

CROPS = ("center", "adm-center")
LOSSY = ("JPEG", "MPO", "WEBP")
Batch: TypeAlias = Tensor | list[Tensor]  # uint8 [B, 3, H, W]; B times [3, H, W] where sizes differ


class ImageFiles(Dataset):
    """Image files, `(uint8 [3, H, W],)` each: as they are, or squares of `size` pixels, cut as data
    sets here do (`center`) or as ADM did (`adm-center`)."""

    def __init__(self, paths: Sequence, size: int | None = None, crop: str = "center") -> None:
        self.paths, self.size, self.crop = paths, size, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor]:
        image, size = images.read_rgb(self.paths[i]), self.size
        if size is None:
            return (images.to_tensor(image),)
        if self.crop == "adm-center":
            return (images.adm_crop(image, size),)
        return (images.crop(images.resize_to_cover(image, size, size), size, size, None),)

    def oddities(self) -> list[str]:
        """A sentence for each way in which files, taken as they are, differ from others."""
        if self.size:
            return []
        lossy, sizes = [], set()
        for path in self.paths:
            with Image.open(path) as file:  # reads the heading only
                sizes.add(file.size)
                lossy += [path] if file.format in LOSSY else []
        told = [f"images of {len(sizes)} sizes"] if len(sizes) > 1 else []
        if lossy:
            told.append(f"{len(lossy)} of {len(self)} images are JPEG or WebP, such as {lossy[0]}")
        return told


def open_images(
    source: str | Path,
    part: str = "validation",
    overrides: Sequence[str] = (),
    size: int | None = None,
    crop: str = "center",
) -> tuple[Dataset, dict[str, Any]]:
    """The images below a folder (see `ImageFiles`), or of `data.params.<part>` of a YAML file and
    `key=value` over it, with its own crops; and plain values that describe them. A UserError where
    there are none, or they would change from one reading to the next."""
    source = Path(source)
    if source.suffix not in config.YAML:
        paths = images_below(source) if source.is_dir() else []
        if len(paths) < 2:
            expected = "expected a folder with several, or a YAML file"
            raise UserError(f"{source}: found {len(paths)} image(s), {expected}")
        how = f"{crop} crop of {size} x {size}" if size else "as they are"
        about = {"source": str(source), "images": len(paths), "preparation": how}
        return ImageFiles(paths, size, crop), about
    key = f"data.params.{part}"
    node = OmegaConf.select(config.load(source, overrides), key)
    if not isinstance(node, DictConfig):
        raise UserError(f"{source}: has no {key}; expected a data set, target and params")
    dataset = config.instantiate(node, key)
    if size or getattr(dataset, "random_crop", False) or getattr(dataset, "flip", False):
        expected = "expected its own crops, neither random nor flipped, without --img_size"
        raise UserError(f"{source}: {key}: {expected}")
    name = f"{source}: {json.dumps(OmegaConf.to_container(node, resolve=True))}"
    about = {"source": name, "images": len(dataset), "preparation": "crops of the data set"}
    return dataset, about


def warnings_of(dataset: Dataset, about: dict[str, Any], process: Process) -> list[str]:
    """What a reader of figures must know of images that have been read; all processes call this
    together."""
    flags = getattr(dataset, "unreadable_flags", torch.zeros(1)).to(process.device, torch.int32)
    unreadable = int(distributed.all_reduce_sum(flags).count_nonzero())
    told = [f"{unreadable} images cannot be read; others took their place"] if unreadable else []
    if isinstance(dataset, ImageFiles) and process.is_main:
        told += dataset.oddities()
    return [f"{about['source']}: {text}" for text in told]


class Features(NamedTuple):
    """What a network sees in a set of images."""

    statistics: Statistics
    logits: Tensor  # [N, K] float32, shuffled: parts of a set sorted by class would not be alike


class Collector:
    """Collects features batch by batch, then those of all processes."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.rows, self.numbers = [torch.empty(0)], []

    def add(self, pixels: Batch, numbers: Sequence[int]) -> None:
        """Add uint8 images [B, 3, H, W] that have these numbers in their set."""
        self.rows.append(self.extractor(pixels).cpu())
        self.numbers += numbers

    def features(self) -> Features | None:
        """Of all processes together, on the first one; None elsewhere. All call this together, and
        any number of them has the same."""
        rows = distributed.gather(torch.cat(self.rows))
        numbers = distributed.gather(torch.tensor(self.numbers, dtype=torch.int64))
        if rows is None or numbers is None:
            return None
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        rows, width = rows[numbers.argsort()[order]], self.extractor.width
        return Features(Statistics.of(rows[:, :width]), rows[:, width:])


def image_batches(
    dataset: Dataset, process: Process, name: str, batch_size: int = 32, num_workers: int = 0
) -> Iterator[tuple[Sequence[int], Any]]:
    """Batches of a data set's images, after their numbers in it, dealt to the processes in turn:
    which images form a batch does not depend on how many processes there are."""
    numbers = range(len(dataset))
    whole = [numbers[k : k + batch_size] for k in range(0, len(numbers), batch_size)]
    mine = whole[process.rank :: process.world]
    loader = DataLoader(
        dataset,
        batch_sampler=mine,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=process.device.type == "cuda",
        worker_init_fn=ignore_signals,
    )
    with progress_bar(sum(map(len, mine)), name, "image", process.is_main) as bar:
        for these, pixels in zip(mine, loader, strict=True):
            yield these, pixels
            bar.update(len(these))


def _collate(items: list[tuple]) -> Batch:
    pixels = [image for image, *_ in items]
    return torch.stack(pixels) if len({image.shape for image in pixels}) == 1 else pixels
