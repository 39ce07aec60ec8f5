"""Features of sets of images, extracted by all processes.

The order of images never matters: they are put in the order of digests of their pixels, so that
one set of pictures gives the same figures under any names and on any number of processes.

Shapes: N images, B of a batch, H W pixels, D features, K classes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import distributed, images
from common.data.folders import Paths
from common.distributed import Process
from common.errors import UserError
from common.logger import progress
from common.metrics.features import Extractor

LOSSY = ("JPEG", "MPO", "WEBP")
Batch = Tensor | list[Tensor]  # uint8 [B, 3, H, W]; B times [3, H, W] where sizes differ


@dataclass(frozen=True)
class Features:
    """What a network sees in a set of images, in the order of their digests.

    Args:
        pooled: float32 [N, D].
        logits: float32 [N, K].
        facts: int64 [N, 4], see `fact`.
    """

    pooled: Tensor
    logits: Tensor
    facts: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def shared_with(self, other: Features) -> int:
        """How many images are in the other set too, pixel by pixel."""
        return int(torch.isin(self.facts[:, 0], other.facts[:, 0]).sum())


def fact(picture: Tensor, lossy: bool = False) -> Tensor:
    """[4]: digest of an image uint8 [3, H, W], its height and width, and `lossy`: whether it is
    what a file with lossy compression holds."""
    height, width = picture.shape[1:]
    digest = hashlib.blake2b(repr((height, width)).encode(), digest_size=8)
    digest.update(picture.cpu().contiguous().numpy())
    number = int.from_bytes(digest.digest(), "little", signed=True)
    return torch.tensor([number, height, width, lossy])


def identity(facts: Tensor) -> str:
    """A short name of a set of images, whatever their names and order."""
    return hashlib.sha256(facts[:, 0].sort().values.numpy().tobytes()).hexdigest()[:16]


def oddities(facts: Tensor) -> list[str]:
    """What a reader of figures must know of these images, a sentence each."""
    found, total, lossy = [], len(facts), int(facts[:, 3].sum())
    if lossy:
        found.append(
            f"{lossy} of {total} images are JPEG or WebP, whose compression changes every figure"
        )
    sizes, counts = facts[:, 1:3].unique(dim=0, return_counts=True)
    if len(sizes) > 1:
        height, width = sizes[counts.argmax()].tolist()
        found.append(
            f"{total - int(counts.max())} of {total} images are not of {height} x {width} pixels "
            "as most are"
        )
    copies = total - len(facts[:, 0].unique())
    if copies:
        found.append(f"{copies} of {total} images are copies of others")
    return found


class Collector:
    """Collects features batch by batch, then those of all processes.

    Args:
        extractor: the network.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.rows = [torch.empty(0, extractor.width + extractor.classes)]
        self.facts = [torch.empty(0, 4, dtype=torch.int64)]

    def add(self, pictures: Batch, facts: Tensor | None = None) -> None:
        """Add uint8 images [B, 3, H, W], as they are or would be saved; `facts` if known."""
        self.rows.append(self.extractor(pictures).cpu())
        self.facts.append(torch.stack([fact(p) for p in pictures]) if facts is None else facts)

    def features(self) -> Features | None:
        """Of all processes together, on the first one; None elsewhere. All call this together."""
        device = self.extractor.device
        rows = distributed.gathered(torch.cat(self.rows).to(device))
        facts = distributed.gathered(torch.cat(self.facts).to(device))
        if rows is None:
            return None
        facts, rows = facts.cpu(), rows.cpu()
        # equal digests are equal pictures, up to the rounding of features
        order = facts[:, 0].argsort()
        facts, rows = facts[order], rows[order]
        pooled, logits = rows.split([self.extractor.width, self.extractor.classes], dim=1)
        return Features(pooled, logits, facts)


@dataclass
class Moments:
    """Mean and covariance of features that are too many to keep: sums in float64."""

    count: Tensor  # []
    total: Tensor  # [D]
    products: Tensor  # [D, D]

    @classmethod
    def none(cls, extractor: Extractor) -> Moments:
        zeros = [(), (extractor.width,), (extractor.width,) * 2]
        return cls(*(torch.zeros(s, dtype=torch.float64, device=extractor.device) for s in zeros))

    def add(self, pooled: Tensor) -> None:
        """Add features [B, D]."""
        pooled = pooled.double()
        self.count += len(pooled)
        self.total += pooled.sum(0)
        self.products += pooled.T @ pooled

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] over all processes, which call this together."""
        count, total, products = map(distributed.total, (self.count, self.total, self.products))
        mean = total / count
        covariance = (products - count * mean.outer(mean)) / (count - 1)
        return mean.cpu(), covariance.cpu()


class Files(Dataset):
    """Images from files: uint8 [3, H, W], and whether these pixels went through lossy compression.

    Args:
        paths: the files, at least one.
        prepare: makes a tensor of the RGB picture, as of a photograph, which may well be a JPEG;
            without it, the pixels are as they are.
        strict: refuse lossy files, and those of another size than the first.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        prepare: Callable[[Image.Image], Tensor] | None = None,
        strict: bool = False,
    ) -> None:
        self.paths, self.prepare = Paths([os.fspath(path) for path in paths]), prepare
        self.size = None
        if strict:
            self.size = images.read_rgb(paths[0]).size
            self[0]  # whose format may be wrong too

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, bool]:
        path = self.paths[i]
        picture = images.read_rgb(path)
        with Image.open(path) as file:  # reads the heading only
            kind = file.format
        if self.size is not None and kind in LOSSY:
            raise UserError(f"{path}: found {kind}, expected images as they were made, such as PNG")
        if self.size not in (None, picture.size):
            found, expected = ("{} x {}".format(*size) for size in (picture.size, self.size))
            raise UserError(f"{path}: found {found} pixels, expected {expected} as the first image")
        if self.prepare is not None:
            return self.prepare(picture), False
        return images.to_tensor(picture), kind in LOSSY


class Crops(Dataset):
    """The pictures of a data set with labels, see `common.data.folders`, as `Files` gives them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, bool]:
        return self.dataset[i][0], False


@dataclass(frozen=True)
class Loading:
    """How images are read: `batch_size` at once, by `num_workers` more processes."""

    batch_size: int = 64
    num_workers: int = 0


def extract(
    dataset: Dataset, extractor: Extractor, process: Process, loading: Loading, name: str
) -> tuple[Features | None, float]:
    """Features of `Files` or `Crops` on the first process, None elsewhere, and the seconds."""
    collector, start = Collector(extractor), time.perf_counter()
    for pictures, facts in batches(dataset, process, loading, name):
        collector.add(pictures, facts)
    return collector.features(), time.perf_counter() - start


def batches(
    dataset: Dataset, process: Process, loading: Loading, name: str
) -> Iterator[tuple[Batch, Tensor]]:
    """This process's batches of a data set, with facts [B, 4], see `fact`.

    Which images form a batch does not depend on the number of processes.
    """
    count, size = len(dataset), loading.batch_size
    mine = share(count, size, process)
    loader = DataLoader(
        dataset,
        batch_sampler=mine,
        num_workers=loading.num_workers,
        collate_fn=_collate,
        pin_memory=process.device.type == "cuda",
    )
    with progress(count, name, "image", process.is_main) as bar:
        for numbers, batch in zip(mine, loader, strict=True):
            yield batch
            # what the others have done meanwhile counts too
            bar.update(min(numbers.start + process.world * size, count) - bar.n)


def share(count: int, size: int, process: Process) -> list[range]:
    """The numbers of the images in each batch of this process, of `count` in batches of `size`."""
    whole = [range(k, min(k + size, count)) for k in range(0, count, size)]
    return whole[process.rank :: process.world]


def _collate(items: list[tuple[Tensor, bool]]) -> tuple[Batch, Tensor]:
    pictures = [picture for picture, _ in items]
    facts = torch.stack([fact(picture, lossy) for picture, lossy in items])
    alike = len({picture.shape for picture in pictures}) == 1
    return (torch.stack(pictures) if alike else pictures), facts
