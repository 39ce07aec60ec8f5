"""Cached tokens: the posterior means of a data set, which `common.data.caching` has written.

Means rather than samples are kept, so that the posterior's noise stays fresh in every epoch. Crops
and flips are drawn when the pictures are encoded, so of each there may be several views, of which
training takes one at a time.

Shapes: N pictures, V views of each, L columns, C token channels.
"""

from __future__ import annotations

import json
import os
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from common import checkpoint
from common.checkpoint import weights_hash
from common.data.sampler import Draw
from common.errors import UserError
from common.seeding import stream


class LatentDataset(Dataset):
    """Posterior means [L, C] and labels from a file of `scripts/cache_latents.py`.

    In training an item is a `Draw`, whose number chooses the view as it would choose crop and
    flip of the picture; an int gives the first view.

    Args:
        path: the file; its tokens are read as they are needed.
        tokenizer: identity of the tokenizer in use.
        seed: of the choice among views.

    Attributes:
        header: what made the means.

    Raises:
        UserError: the file is missing or of another kind, or another tokenizer made it.
    """

    def __init__(self, path: str | os.PathLike[str], tokenizer: str, seed: int = 0) -> None:
        self.path, self.seed = path, seed
        self.header = read_header(path)
        if self.header["tokenizer"] != tokenizer:
            raise UserError(
                f"{path}: found tokens of tokenizer {self.header['tokenizer']}, expected those of "
                f"{tokenizer}, the one given; encode the images again"
            )
        self.class_names: list[str] = self.header["class_names"]
        self.crops, self.flips = (self.header["views"][k] for k in ("crops", "flips"))
        self._open()

    def _open(self) -> None:
        tensors = checkpoint.load(self.path)  # mapped, not read
        self.means, self.labels = tensors["means"], tensors["labels"]

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, i: int | Draw) -> tuple[Tensor, int]:
        index, view = (i, 0) if isinstance(i, int) else (i.index, self._view(i.number))
        return self.means[index, view], int(self.labels[index])

    def _view(self, number: int) -> int:
        if self.means.shape[1] == 1:
            return 0
        randomness = stream(self.seed, "crop", number)
        crop = int(randomness.integers(max(self.crops, 1)))
        return 2 * crop + int(randomness.random() < 0.5) if self.flips else crop

    def __getstate__(self) -> dict[str, Any]:
        """Without the tokens: a worker that is not forked maps the file itself."""
        return {k: v for k, v in vars(self).items() if k not in ("means", "labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What made a file of cached tokens.

    Raises:
        UserError: it is none, or of an earlier version.
    """
    header = json.loads(checkpoint.load_metadata(path).get("header", "{}"))
    if not {"tokenizer", "class_names", "views"} <= header.keys():
        raise UserError(
            f"{path}: not a file of cached tokens; expected one that scripts/cache_latents.py wrote"
        )
    return header


# names of before, until their callers are renamed
Latents = LatentDataset
__all__ = ["LatentDataset", "Latents", "read_header", "weights_hash"]
