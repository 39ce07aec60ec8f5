"""Cached tokens: the posterior means of a data set, encoded once and then trained on.

Means rather than samples, so that the posterior's noise stays fresh in every epoch. Where training
flips at random, both flips of an image are encoded, of which it takes one at a time.

Shapes: N images, V flips of each (1 or 2), L columns, C token channels, H W pixels.
"""

import copy
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
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
LAYOUT = "means [image, flip, column, channel], in the posterior's scale"


@dataclass(frozen=True)
class LatentHeader:
    """What a file of tokens holds, and all that training needs to know of their tokenizer."""

    tokenizer: str  # fingerprint of its weights
    token_scale: float = setting(help="factor from the posterior's to the model's scale", above=0)
    std: float = setting(help="noise range of the posterior", min=0)
    height: int = setting(help="of the images in pixels", min=1)
    column_width: int = setting(help="of a token in pixels", min=1)
    class_names: list[str] = setting(help="names of the classes")
    data: Any = None  # the images, in plain values
    rows: int = setting(1, "of tokens, in raster order; 1: a token is a column", min=1)
    images: int = 0  # their number; this and what follows is filled in by `cache_latents`
    width: int = 0  # in pixels
    flips: bool = False  # whether each image is followed by its flip
    files: str = ""  # digest of the images' names and labels
    layout: str = setting(LAYOUT, choices=(LAYOUT,))
    kind: str = setting(KIND, choices=(KIND,))


class LatentDataset(Dataset):
    """Posterior means [L, C] and labels from a file of `cache_latents`, read as they are needed.

    An item is a `Draw`, whose number with `seed` chooses the flip, or an int, for the image as it
    is. `tokenizer` is the fingerprint of the one in use, for which the file must have been made.
    """

    def __init__(
        self, path: str | os.PathLike[str], tokenizer: str | None = None, seed: int = 0
    ) -> None:
        self.path, self.seed = path, seed
        self.header = header = read_header(path)
        self.class_names, made = header.class_names, header.tokenizer
        if tokenizer not in (None, made):
            raise UserError(f"{path}: found tokens of tokenizer {made}, expected of {tokenizer}")
        first = os.environ.get("RANK", "0") == "0" and not multiprocessing.parent_process()
        tensors = checkpoint.load(path, verify=first)  # mapped, not read
        self.means, self.labels = (tensors.get(k, torch.empty(0)) for k in ("means", "labels"))
        if (
            header.images < 1
            or self.means.ndim != 4
            or self.means.shape[:2] != (header.images, 1 + header.flips)
            or self.labels.shape != (header.images,)
            or not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names)
        ):
            raise UserError(f"{path}: damaged: its tokens are not those of its header")

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, i: int | Draw) -> tuple[Tensor, int]:
        if isinstance(i, int):
            return self.means[i, 0], int(self.labels[i])
        # by the stream that decides the crop and flip of an image
        flip = self.header.flips and stream(self.seed, "crop", i.number).random() < 0.5
        return self.means[i.index, int(flip)], int(self.labels[i.index])

    def __reduce__(self) -> tuple[Any, ...]:  # a worker that is not forked maps the file itself
        return LatentDataset, (self.path, None, self.seed)


def read_header(path: str | os.PathLike[str]) -> LatentHeader:
    """What a file of cached tokens holds."""
    try:
        values = json.loads(checkpoint.load_metadata(path).get("header", "null"))
        return structured(LatentHeader, values, "header")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a file of cached tokens of this version ({error})") from None


@torch.inference_mode()
def cache_latents(
    dataset: Dataset,
    encode: Callable[[Tensor], Tensor],
    header: LatentHeader,
    process: Process,
    batch_size: int,
    num_workers: int,
    path: Path,
) -> bool:
    """Encode every image of `dataset` once, cut at its centre; where training flips at random, both
    flips of each. False if the file is there already, and is the same.

    Each `SHARD` of images goes to a file of its own in `path`.parts, shared out to the processes;
    an attempt that was stopped goes on with those that are missing, on any number of processes.

    Args:
        encode: images [B, 3, H, W] in [-1, 1] on the process's device → means [B, L, C].
        header: what makes the means; a file, or the beginning of one, with another is refused.
        batch_size: images in a batch of one process.
    """
    count, flips, digest = len(dataset), bool(getattr(dataset, "flip", False)), hashlib.sha256()
    if isinstance(dataset, ImageDataset):
        dataset = copy.copy(dataset)
        dataset.flip = dataset.random_crop = False
        digest.update(b"".join(name + b"\n" for name in dataset.paths))
        digest.update(dataset.labels.tobytes())
    filled = {"images": count, "flips": flips, "width": dataset[0][0].shape[2]}
    values = dataclasses.asdict(header) | filled | {"files": digest.hexdigest()[:16]}
    parts = path.with_name(f"{path.name}.parts")
    if path.exists():
        check_same(path, dataclasses.asdict(read_header(path)), values)
        if process.is_main:
            shutil.rmtree(parts, ignore_errors=True)
        return False
    if process.is_main:
        claim_folder(parts, values)
    distributed.barrier()
    shards = {
        parts / f"{first // SHARD:06d}.safetensors": range(count)[first : first + SHARD]
        for first in range(0, count, SHARD)
    }
    missing = distributed.broadcast_object([file for file in shards if not file.exists()])
    mine = missing[process.rank :: process.world]

    batches = [list(BatchSampler(shards[file], batch_size, drop_last=False)) for file in mine]
    order = [batch for shard in batches for batch in shard]
    options = {"num_workers": num_workers, "worker_init_fn": ignore_signals}
    items = iter(DataLoader(dataset, batch_sampler=order, **options))
    with progress_bar(len(order), "encoding", "batch", process.is_main) as bar:
        for file, shard in zip(mine, batches, strict=True):
            means, labels = [], []
            for pixels, classes in islice(items, len(shard)):
                x = images.to_float(pixels.to(process.device, non_blocking=True))
                both = [encode(x), encode(x.flip(3))] if flips else [encode(x)]
                means.append(torch.stack(both, dim=1).float().cpu())
                labels.append(classes)
                bar.update()
            tensors = {"means": torch.cat(means), "labels": torch.cat(labels)}
            if not tensors["means"].isfinite().all():
                raise UserError(f"{file}: not written: the tokenizer's means are not finite")
            checkpoint.save_safetensors(file, tensors)
    distributed.barrier()

    if process.is_main:
        loaded = [checkpoint.load(file) for file in shards]  # mapped, not read
        joined = {name: [tensors[name] for tensors in loaded] for name in ("means", "labels")}
        checkpoint.save_safetensors(path, joined, {"header": json.dumps(values)})
        shutil.rmtree(parts)
    distributed.barrier()
    return True
