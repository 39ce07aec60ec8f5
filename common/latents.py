"""Cached tokens: the posterior means of a data set, encoded once.

Means rather than samples are kept, so that the posterior's noise stays fresh in every epoch.

Shapes: N images, L columns, C token channels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from common import checkpoint, distributed, images
from common.distributed import Process
from common.errors import UserError
from common.logs import Unreadable, progress


def save_latents(path: str | os.PathLike[str], means: Tensor, labels: Tensor, header: dict) -> None:
    """Write means [N, L, C] and labels [N] with a header of plain values."""
    tensors = {"means": means, "labels": labels}
    checkpoint.save_safetensors(path, tensors, {"header": json.dumps(header)})


@torch.inference_mode()
def encode_all(
    dataset: Dataset,
    encode: Callable[[Tensor], Tensor],
    process: Process,
    batch_size: int,
    num_workers: int,
    path: str | os.PathLike[str],
) -> tuple[Tensor, Tensor] | None:
    """Encode every image of a data set once, each process its share.

    Args:
        dataset: of uint8 images [3, H, W] and labels.
        encode: images [B, 3, H, W] in [-1, 1] on the process's device → means [B, L, C].
        process: this process.
        batch_size, num_workers: of the loader of one process.
        path: beside which the shares of other processes lie until they are put together.

    Returns:
        Means [N, L, C] and labels [N] in the order of the data set, on the main process; None on
        the others.

    Raises:
        UserError: there are fewer images than processes, or none can be read.
    """
    count, world = len(dataset), process.world
    if count < world:
        raise UserError(f"found {count} images for {world} processes, expected one for each")
    share = Subset(dataset, range(process.rank, count, world))
    loader = DataLoader(share, batch_size, num_workers=num_workers)
    means, labels = [], []
    with progress(len(loader), "encoding", "batch", process.is_main) as bar:
        for pictures, names in loader:
            means.append(encode(images.to_float(pictures.to(process.device))).cpu())
            labels.append(names)
            bar.update()
    message = Unreadable(dataset, "images", process.device).news()
    if message and process.is_main:
        print(message)

    parts = [Path(f"{path}.part{rank}.safetensors") for rank in range(world)]
    if world > 1:
        mine = {"means": torch.cat(means), "labels": torch.cat(labels)}
        checkpoint.save_safetensors(parts[process.rank], mine)
        distributed.barrier()
    if not process.is_main:
        return None
    if world == 1:
        return torch.cat(means), torch.cat(labels)
    for rank, part in enumerate(parts):
        share = checkpoint.load(part)
        if rank == 0:
            together = {k: v.new_empty(count, *v.shape[1:]) for k, v in share.items()}
        for name, values in share.items():
            together[name][rank::world] = values
        part.unlink()
    return together["means"], together["labels"]


class Latents(Dataset):
    """Posterior means [L, C] and labels from a file of `scripts/cache_latents.py`.

    Attributes:
        header: `class_names` and `tokenizer`, the hash of the weights that encoded the images.

    Raises:
        UserError: the file is missing or of another kind, or another tokenizer made it.
    """

    def __init__(self, path: str | os.PathLike[str], tokenizer_hash: str) -> None:
        tensors = checkpoint.load(path)
        metadata = checkpoint.load_metadata(path)
        if set(tensors) != {"means", "labels"} or "header" not in metadata:
            raise UserError(
                f"{path}: not a file of cached tokens; expected one that "
                "scripts/cache_latents.py wrote"
            )
        self.header = json.loads(metadata["header"])
        if self.header["tokenizer"] != tokenizer_hash:
            raise UserError(
                f"{path}: found tokens of tokenizer {self.header['tokenizer']}, expected those of "
                f"{tokenizer_hash}, the one given; encode the images again"
            )
        self.class_names: list[str] = self.header["class_names"]
        self.means, self.labels = tensors["means"], tensors["labels"]

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, i: int | tuple) -> tuple[Tensor, int]:
        index = i if isinstance(i, int) else i[0]
        return self.means[index], int(self.labels[index])


def weights_hash(state: dict[str, Tensor]) -> str:
    """A short name for a set of weights, the same wherever they are loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
