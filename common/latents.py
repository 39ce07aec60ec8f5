"""Cached tokens: the posterior means of a data set, encoded once.

Means rather than samples are kept, so that the posterior's noise stays fresh in every epoch.

Shapes: N images, L columns, C token channels.
"""

from __future__ import annotations

import hashlib
import json
import os

from torch import Tensor
from torch.utils.data import Dataset

from common import checkpoint
from common.errors import UserError


def save_latents(path: str | os.PathLike[str], means: Tensor, labels: Tensor, header: dict) -> None:
    """Write means [N, L, C] and labels [N] with a header of plain values."""
    tensors = {"means": means, "labels": labels}
    checkpoint.save_safetensors(path, tensors, {"header": json.dumps(header)})


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
