"""Random streams that are named, so that no draw depends on what was drawn before it.

A stream belongs to a seed and a key such as `("noise", image)`. The same name gives the same
numbers on every machine, in every process and after every resume.
"""

from __future__ import annotations

import hashlib
import operator
import random

import numpy as np
import torch


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """The random stream called `(seed, *key)`, at its beginning.

    Draws are sequential: of two draws of one kind, the longer one begins with the shorter one.
    """
    # A digest of the written-out name, because `SeedSequence` itself takes (1,) and (1, 0) for the
    # same entropy, as it does 2**32 and (0, 1), and Python's hash() of a string changes every run.
    name = repr([part if isinstance(part, str) else operator.index(part) for part in (seed, *key)])
    digest = hashlib.sha256(name.encode()).digest()
    entropy = np.random.SeedSequence(int.from_bytes(digest, "little"))
    return np.random.Generator(np.random.PCG64(entropy))


def normal(seed: int, *key: int | str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal float32 numbers of `shape`, from the stream called `(seed, *key)`.

    They are laid out with the last dimension fastest: more rows leave the first rows the same.
    """
    return torch.from_numpy(stream(seed, *key).standard_normal(shape).astype(np.float32))


def generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator at the beginning of the stream called `(seed, *key)`.

    For draws made on `device` during training; they differ between kinds of device.
    """
    return torch.Generator(device).manual_seed(int(stream(seed, *key).integers(2**63)))


def seed_everything(seed: int) -> None:
    """Seed the ambient generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
