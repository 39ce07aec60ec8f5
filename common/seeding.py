"""Random streams that are named, so that no draw depends on what was drawn before it.

A stream belongs to a seed and a key such as `("noise", image)`. The same name gives the same
numbers on every machine, in every process and after every resume.
"""

import hashlib
import operator
from collections.abc import Callable

import numpy as np
import torch


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """The random stream called `(seed, *key)`, at its beginning. Of two draws of one kind, the
    longer one begins with the shorter one."""
    # A digest of the written-out name, because `SeedSequence` itself takes (1,) and (1, 0) for the
    # same entropy, as it does 2**32 and (0, 1), and Python's hash() of a string changes every run.
    name = repr([part if isinstance(part, str) else operator.index(part) for part in (seed, *key)])
    digest = hashlib.sha256(name.encode()).digest()
    entropy = np.random.SeedSequence(int.from_bytes(digest, "little"))
    return np.random.Generator(np.random.PCG64(entropy))


def normal(seed: int, *key: int | str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal float32 numbers of `shape` from the stream called `(seed, *key)`; more rows
    leave the first rows the same."""
    return torch.from_numpy(stream(seed, *key).standard_normal(shape).astype(np.float32))


def generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` at the beginning of the stream called `(seed, *key)`."""
    return torch.Generator(device).manual_seed(int(stream(seed, *key).integers(2**63)))


class BatchDraws:
    """Random rows for this process's part of a batch, the same however the batch is shared out.

    Row i of process r is row i·world + r of the whole batch, as `DrawSampler` deals images: each
    process draws the rows of all of them from the same `generator`, and keeps its own.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, world: int = 1) -> None:
        self.generator, self.rank, self.world = generator, rank, world
        self._shared = torch.Generator().manual_seed(generator.initial_seed())

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Standard normal numbers [rows, *shape]."""
        return self._rows(torch.randn, rows, shape)

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Numbers in [0, 1), [rows, *shape]."""
        return self._rows(torch.rand, rows, shape)

    def shared(self, count: int) -> torch.Tensor:
        """`count` numbers in [0, 1) that all processes have in common, on the CPU."""
        return torch.rand(count, generator=self._shared)

    def _rows(self, draw: Callable, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
        options = {"generator": self.generator, "device": self.generator.device}
        return draw(rows * self.world, *shape, **options)[self.rank :: self.world]
