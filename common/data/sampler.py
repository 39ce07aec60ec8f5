"""The order in which training draws from a data set."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from common.seeding import stream


class Draw(NamedTuple):
    """Image `index`, drawn as the `number`-th of the whole training."""

    index: int  # type: ignore[assignment]
    number: int


class DrawSampler(Sampler[Draw]):
    """The draws of one process in one epoch.

    The order depends on `seed` and the epoch only; process `r` of `world` takes every `world`-th
    draw from the `r`-th on, so that the global batches are the same for any `world` with the same
    global batch size.

    Args:
        length: images in the data set.
        process_rank, world: which process this is, and how many there are.
        batch_size: draws in a batch of one process.
        seed: for the order.
        shuffle: a new random order in each epoch; otherwise the order of the data set.
        drop_last: leave out the draws at the end that do not fill a batch on every process.
    """

    def __init__(
        self,
        length: int,
        process_rank: int,
        world: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        self.rank, self.world, self.batch_size = process_rank, world, batch_size
        self.length, self.seed, self.shuffle = length, seed, shuffle
        together = batch_size * world
        self.used = length // together * together if drop_last else length
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a new one starts with its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0

    def resume(self, epoch: int, start_batch: int) -> None:
        """Start in the middle: leave out the first `start_batch` batches of this `epoch`."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Draws of this process in a whole epoch, whatever batch it starts with."""
        return len(range(self.rank, self.used, self.world))

    def __iter__(self) -> Iterator[Draw]:
        if self.shuffle:
            order = stream(self.seed, "order", self.epoch).permutation(self.length)
        else:
            order = np.arange(self.length)
        first = self.rank + self.start_batch * self.batch_size * self.world
        for position in range(first, self.used, self.world):
            yield Draw(int(order[position]), self.epoch * self.length + position)
