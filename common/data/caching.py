"""Encode a data set once: the posterior means of every picture, to a file that `Latents` reads.

Each `SHARD` of pictures goes to a file of its own; an attempt that was stopped goes on with those
that are missing, on any number of processes. At the end the shards are put together.

Shapes: N pictures, V views of each, L columns, C token channels, H W pixels.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import checkpoint, distributed, images
from common.data.folders import Pictures
from common.data.latents import read_header
from common.data.sampler import Draw
from common.distributed import Process
from common.errors import UserError
from common.io import replacing
from common.logger import Unreadable, progress
from common.records import claim_folder

SHARD = 256  # images
DTYPES = {torch.float32: "F32", torch.int64: "I64"}  # names in safetensors files


class Views(Dataset):
    """The views of each picture that are to be cached.

    Args:
        dataset: as training would open it. Where it flips at random, both are views.
        crops: random crops a picture; 0 for the centre crop alone.

    Raises:
        UserError: crops of a data set that has none.
    """

    def __init__(self, dataset: Dataset, crops: int = 0) -> None:
        self.flips = bool(getattr(dataset, "flip", False))
        if isinstance(dataset, Pictures):
            dataset = copy.copy(dataset)
            dataset.flip, dataset.random_crop, dataset.train = False, crops > 0, crops > 0
        elif crops:
            raise UserError("--crops: given, but this data draws no crops")
        self.dataset, self.crops = dataset, crops

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """The crops of picture i, uint8 [crops, 3, H, W], not flipped, and its label."""
        if not self.crops:
            picture, label = self.dataset[i]
            return picture[None], label
        found = [self.dataset[Draw(i, crop * len(self) + i)] for crop in range(self.crops)]
        return torch.stack([picture for picture, _ in found]), found[0][1]

    def describe(self) -> dict[str, Any]:
        """Plain values, others for other views."""
        pictures = self[0][0]
        digest = hashlib.sha256()
        if isinstance(self.dataset, Pictures):
            for path in self.dataset.paths:
                digest.update(os.fsencode(path) + b"\n")
            digest.update(self.dataset.labels.tobytes())
        return {
            "images": len(self),
            "pixels": list(pictures.shape[2:]),
            "crops": self.crops,
            "flips": self.flips,
            "files": digest.hexdigest()[:16],
        }


def cache(
    views: Views,
    encode: Callable[[Tensor], Tensor],
    header: dict[str, Any],
    process: Process,
    batch_size: int,
    num_workers: int,
    path: Path,
) -> bool:
    """Encode every view of every picture once, each process its share of the shards.

    Args:
        views: of the pictures.
        encode: images [B, 3, H, W] in [-1, 1] on the process's device → means [B, L, C].
        header: plain values that say what made the means, `class_names` and `tokenizer` among
            them.
        process: this process.
        batch_size, num_workers: of the loader of one process; `batch_size` counts pictures.
        path: the file; `path`.parts is where shards lie in the meantime.

    Returns:
        Whether there was anything to do: not so, where the file is there and has this header.

    Raises:
        UserError: the file is there, or the beginning of one, with another header.
    """
    header = header | {"views": views.describe()}
    parts = path.with_name(f"{path.name}.parts")
    if path.exists():
        found = read_header(path)
        if found != header:
            key = next(k for k in header | found if found.get(k) != header.get(k))
            raise UserError(
                f"{path}: is there already, made with {key} {found.get(key)}, not "
                f"{header.get(key)}; expected another path, or the file removed"
            )
        if process.is_main:
            shutil.rmtree(parts, ignore_errors=True)
        return False
    if process.is_main:
        claim_folder(parts, header)
    distributed.barrier()
    files = [parts / f"{k:06d}.safetensors" for k in range(-(-len(views) // SHARD))]
    missing = distributed.agreed([k for k, file in enumerate(files) if not file.exists()])
    mine = missing[process.rank :: process.world]
    _encode(views, encode, mine, files, process, batch_size, num_workers)
    distributed.barrier()
    if process.is_main:
        _join(files, path, {"header": json.dumps(header)})
        shutil.rmtree(parts)
    distributed.barrier()
    return True


@torch.inference_mode()
def _encode(
    views: Views,
    encode: Callable[[Tensor], Tensor],
    shards: Sequence[int],
    files: Sequence[Path],
    process: Process,
    batch_size: int,
    num_workers: int,
) -> None:
    ends = {k: min((k + 1) * SHARD, len(views)) for k in shards}
    batches = [
        range(first, min(first + batch_size, end))
        for k, end in ends.items()
        for first in range(k * SHARD, end, batch_size)
    ]
    loader = DataLoader(views, batch_sampler=batches, num_workers=num_workers)
    means: list[Tensor] = []
    labels: list[Tensor] = []
    with progress(len(batches), "encoding", "batch", process.is_main) as bar:
        for batch, (pictures, names) in zip(batches, loader, strict=True):
            pixels = images.to_float(pictures.to(process.device, non_blocking=True))
            kinds = [pixels, pixels.flip(4)] if views.flips else [pixels]
            found = torch.stack([encode(kind.flatten(0, 1)) for kind in kinds], dim=1)
            means.append(found.unflatten(0, pictures.shape[:2]).flatten(1, 2).float().cpu())
            labels.append(names)
            shard = batch.start // SHARD
            if batch.stop == ends[shard]:
                tensors = {"means": torch.cat(means), "labels": torch.cat(labels)}
                checkpoint.save_safetensors(files[shard], tensors)
                means, labels = [], []
            bar.update()
    message = Unreadable(views.dataset, "images", process.device).news()
    if message and process.is_main:
        print(message)


def _join(files: Sequence[Path], path: Path, metadata: dict[str, str]) -> None:
    """One safetensors file of several, their tensors one behind the other; a shard in memory at a
    time."""
    shards = [checkpoint.load(file) for file in files]  # mapped, not read
    heading: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, first in shards[0].items():
        count = sum(len(shard[name]) for shard in shards)
        begin, end = end, end + count * first[0].nbytes
        shape = [count, *first.shape[1:]]
        heading[name] = {"dtype": DTYPES[first.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(heading).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shards[0]:
            for shard in shards:
                file.write(shard[name].numpy())
