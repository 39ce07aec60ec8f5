"""The order in which training draws from a data set."""

from collections.abc import Iterator
from typing import NamedTuple

from torch.utils.data import Sampler

from common.seeding import stream


class Draw(NamedTuple):
    """Image `index`, drawn as the `number`-th of the whole training."""

    index: int  # type: ignore[assignment]
    number: int


class DrawSampler(Sampler[Draw]):
    """The draws of process `rank` of `world` in one epoch, a whole number of batches.

    The order depends on `seed` and the epoch only. A process takes every `world`-th draw from the
    `rank`-th on, so that the global batches are the same for any `world` with the same global batch
    size; draws at the end that do not fill a batch on every process are left out.
    """

    def __init__(self, length: int, rank: int, world: int, batch_size: int, seed: int) -> None:
        self.length, self.rank, self.world = length, rank, world
        self.batch_size, self.seed = batch_size, seed
        self.used = length - length % (batch_size * world)
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a new one starts with its first batch."""
        if epoch != self.epoch:
            self.resume(epoch, 0)

    def resume(self, epoch: int, start_batch: int) -> None:
        """Start in the middle: leave out the first `start_batch` batches of this `epoch`."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Draws of this process in a whole epoch, whatever batch it starts with."""
        return self.used // self.world

    def __iter__(self) -> Iterator[Draw]:
        order = stream(self.seed, "order", self.epoch).permutation(self.length)
        first = self.rank + self.start_batch * self.batch_size * self.world
        for position in range(first, self.used, self.world):
            yield Draw(int(order[position]), self.epoch * self.length + position)
