"""Cached tokens: the posterior means of a data set, encoded once and then trained on.

Means rather than samples, so that the posterior's noise stays fresh in every epoch. Crops and flips
are drawn when the images are encoded; of these views training takes one at a time.

Shapes: N images, V views of each, L columns, C token channels, H W pixels.
"""

import copy
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from common import checkpoint, distributed, images
from common.config import setting, structured
from common.data.folders import ImageDataset
from common.data.sampler import Draw
from common.distributed import Process
from common.errors import UserError
from common.io import check_same, claim_folder
from common.logger import progress_bar
from common.seeding import stream
from common.signals import ignore_signals

SHARD = 256  # images
KIND = "column latents"
LAYOUT = "means [image, crop and flip, column, channel], in the posterior's scale"


@dataclass(frozen=True)
class ViewsHeader:
    """The views that a file of tokens holds of its images."""

    images: int = setting(min=1)
    pixels: tuple[int, int] = setting(help="height and width", min=1)
    crops: int = setting(help="random crops an image; 0: the centre crop", min=0)
    flips: bool = setting(help="whether each crop is followed by its flip")
    files: str = setting(help="digest of the images' names and labels")


@dataclass(frozen=True)
class LatentHeader:
    """What a file of tokens holds, and all that training needs to know of their tokenizer."""

    tokenizer: str  # fingerprint of its weights
    token_scale: float = setting(help="factor from the posterior's to the model's scale", above=0)
    std: float = setting(help="noise range of the posterior", min=0)
    height: int = setting(help="of the images in pixels", min=1)
    column_width: int = setting(help="of a token in pixels", min=1)
    class_names: list[str] = setting(help="names of the classes")
    views: ViewsHeader | None = None  # filled in by `cache_latents`
    data: Any = None  # the images, in plain values
    seed: int = 0  # of the crops
    layout: str = setting(LAYOUT, choices=(LAYOUT,))
    kind: str = setting(KIND, choices=(KIND,))


class LatentDataset(Dataset):
    """Posterior means [L, C] and labels from a file of `cache_latents`, read as they are needed.

    An item is a `Draw`, whose number with `seed` chooses the view as it would choose crop and flip
    of the image, or an int, for the first view. `tokenizer` is the fingerprint of the one in use,
    for which the file must have been made. The first process verifies the file's checksum.
    """

    kind = "latents"

    def __init__(
        self, path: str | os.PathLike[str], tokenizer: str | None = None, seed: int = 0
    ) -> None:
        self.path, self.seed = path, seed
        self.header = read_header(path)
        made = self.header.tokenizer
        if tokenizer not in (None, made):
            raise UserError(f"{path}: found tokens of tokenizer {made}, expected of {tokenizer}")
        self.class_names, views = self.header.class_names, self.header.views
        self.crops, self.flips = views.crops, views.flips
        counts = (views.images, max(self.crops, 1) * (1 + self.flips))
        first = os.environ.get("RANK", "0") == "0" and not multiprocessing.parent_process()
        tensors = checkpoint.load(path, verify=first)  # mapped, not read
        self.means, self.labels = tensors.get("means"), tensors.get("labels")
        if (
            self.means is None
            or self.labels is None
            or self.means.shape != (*counts, *self.means.shape[-2:])
            or self.labels.shape != counts[:1]
            or not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names)
        ):
            raise UserError(f"{path}: damaged: its tokens are not those of its header ({views})")

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, i: int | Draw) -> tuple[Tensor, int]:
        if isinstance(i, int):
            return self.means[i, 0], int(self.labels[i])
        view, randomness = 0, stream(self.seed, "crop", i.number)
        if self.means.shape[1] > 1:
            view = int(randomness.integers(max(self.crops, 1)))
        if self.flips:
            view = 2 * view + int(randomness.random() < 0.5)
        return self.means[i.index, view], int(self.labels[i.index])

    def __reduce__(self) -> tuple[Any, ...]:  # a worker that is not forked maps the file itself
        return LatentDataset, (self.path, None, self.seed)


def read_header(path: str | os.PathLike[str]) -> LatentHeader:
    """What a file of cached tokens holds."""
    try:
        values = json.loads(checkpoint.load_metadata(path).get("header", "null"))
        header = structured(LatentHeader, values, "header")
        if header.views is None or not header.class_names:
            raise UserError("header: has no views or no class names")
    except (ValueError, RecursionError) as error:
        made = "a file of cached tokens of this version of scripts/cache_latents.py"
        raise UserError(f"{path}: not {made} ({error})") from None
    return header


class Views(Dataset):
    """The views to cache of each image of `dataset`, which is as training would open it: `crops`
    random crops, or the centre crop for 0; where training flips at random, both flips of each."""

    def __init__(self, dataset: Dataset, crops: int = 0) -> None:
        self.flips = bool(getattr(dataset, "flip", False))
        if isinstance(dataset, ImageDataset):
            dataset = copy.copy(dataset)
            dataset.flip, dataset.random_crop = False, crops > 0
        elif crops:
            raise UserError("--crops: given, but this data draws no crops")
        self.dataset, self.crops = dataset, crops

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """The crops of image i, uint8 [crops, 3, H, W], not flipped, and its label."""
        if not self.crops:
            image, label = self.dataset[i]
            return image[None], label
        found = [self.dataset[Draw(i, crop * len(self) + i)] for crop in range(self.crops)]
        return torch.stack([image for image, _ in found]), found[0][1]

    def describe(self) -> ViewsHeader:
        """For the file's header."""
        height, width = self[0][0].shape[2:]
        digest = hashlib.sha256()
        if isinstance(self.dataset, ImageDataset):
            digest.update(b"".join(os.fsencode(path) + b"\n" for path in self.dataset.paths))
            digest.update(self.dataset.labels.tobytes())
        shape, files = (height, width), digest.hexdigest()[:16]
        return ViewsHeader(len(self), shape, self.crops, self.flips, files)


def cache_latents(
    views: Views,
    encode: Callable[[Tensor], Tensor],
    header: LatentHeader,
    process: Process,
    batch_size: int,
    num_workers: int,
    path: Path,
) -> bool:
    """Encode every view of every image once; False if the file is there already, and is the same.

    Each `SHARD` of images goes to a file of its own in `path`.parts, shared out to the processes;
    an attempt that was stopped goes on with those that are missing, on any number of processes.

    Args:
        encode: images [B, 3, H, W] in [-1, 1] on the process's device → means [B, L, C].
        header: what makes the means; a file, or the beginning of one, with another is refused.
        batch_size: images in a batch of one process.
    """
    values = _plain(dataclasses.replace(header, views=views.describe()))
    parts = path.with_name(f"{path.name}.parts")
    if path.exists():
        check_same(path, _plain(read_header(path)), values)
        if process.is_main:
            shutil.rmtree(parts, ignore_errors=True)
        return False
    if process.is_main:
        claim_folder(parts, values)
    distributed.barrier()
    files = [parts / f"{k:06d}.safetensors" for k in range(-(-len(views) // SHARD))]
    missing = distributed.broadcast_object([k for k, file in enumerate(files) if not file.exists()])
    mine = {k: files[k] for k in missing[process.rank :: process.world]}
    _encode(views, encode, mine, process, batch_size, num_workers)
    distributed.barrier()
    if process.is_main:
        shards = [checkpoint.load(file) for file in files]  # mapped, not read
        tensors = {name: [shard[name] for shard in shards] for name in ("means", "labels")}
        checkpoint.save_safetensors(path, tensors, {"header": json.dumps(values)})
        shutil.rmtree(parts)
    distributed.barrier()
    return True


def _plain(header: LatentHeader) -> dict[str, Any]:
    """As JSON gives it back, which knows no tuples."""
    return json.loads(json.dumps(dataclasses.asdict(header)))


@torch.inference_mode()
def _encode(
    views: Views,
    encode: Callable[[Tensor], Tensor],
    shards: Mapping[int, Path],
    process: Process,
    batch_size: int,
    num_workers: int,
) -> None:
    parts = [range(k * SHARD, min((k + 1) * SHARD, len(views))) for k in shards]
    batches = [list(BatchSampler(part, batch_size, drop_last=False)) for part in parts]
    order = list(chain.from_iterable(batches))
    options = {"num_workers": num_workers, "worker_init_fn": ignore_signals}
    items = iter(DataLoader(views, batch_sampler=order, **options))
    with progress_bar(len(order), "encoding", "batch", process.is_main) as bar:
        for file, part in zip(shards.values(), batches, strict=True):
            means, labels = [], []
            for crops, names in islice(items, len(part)):
                pixels = images.to_float(crops.to(process.device, non_blocking=True))
                kinds = [pixels, pixels.flip(4)] if views.flips else [pixels]
                found = torch.stack([encode(kind.flatten(0, 1)) for kind in kinds], dim=1)
                means.append(found.unflatten(0, crops.shape[:2]).flatten(1, 2).float().cpu())
                labels.append(names)
                bar.update()
            tensors = {"means": torch.cat(means), "labels": torch.cat(labels)}
            if not checkpoint.is_finite(tensors["means"]):
                raise UserError(f"{file}: the tokenizer's means are not finite")
            checkpoint.save_safetensors(file, tensors)
