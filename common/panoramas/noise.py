"""Hashed noise: numbers that depend on a key and on absolute coordinates alone.

Everything here, and in the images painted with it, is integer arithmetic or one of the operations
that IEEE 754 rounds correctly (+ - * / sqrt floor), never a library's exp or sin. A value is
therefore the same, bit for bit, on every machine and through every window.

Shapes: W columns, H rows.
"""

from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np


def derive(key: int, *names: int | str) -> int:
    """A new 32-bit key for each (key, names)."""
    digest = blake2b("/".join(map(str, (key, *names))).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def uniform(key: int, *cells: np.ndarray) -> np.ndarray:
    """One float32 in [0, 1) for each integer cell; several coordinate arrays are broadcast."""
    bits: Any = np.uint32(key)
    for cell in cells:
        bits = _mix((cell.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ bits)
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def smooth(t: np.ndarray) -> np.ndarray:
    """Smoothstep: 0 to 1 for t in [0, 1], flat at both ends."""
    return t * t * (3 - 2 * t)


def mix(a: Any, b: Any, t: Any) -> Any:
    """`a` where t is 0, `b` where t is 1; arrays or numbers."""
    return a + (b - a) * t


def noise_1d(key: int, x: np.ndarray) -> np.ndarray:
    """Value noise in [0, 1] with one lattice point a unit of x (float64, any shape)."""
    first, cell, t = _lattice(key, x)
    value = uniform(key, first + np.arange(cell.max() + 2))
    return mix(value[cell], value[cell + 1], t)


def noise_2d(key: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Value noise in [0, 1], [H, W], on the grid of x [W] and y [H]."""
    first_x, column, t_x = _lattice(key, x)
    first_y, row, t_y = _lattice(derive(key, "y"), y)
    columns = first_x + np.arange(column.max() + 2)
    rows = first_y + np.arange(row.max() + 2)
    value = uniform(key, rows[:, None], columns)
    band = mix(value[:, column], value[:, column + 1], t_x)  # one row a lattice row
    return mix(band[row], band[row + 1], t_y[:, None])


class Scatter(NamedTuple):
    """Objects that stand along x: for each column the three nearest ones, or the one picked."""

    key: int
    cell: np.ndarray  # [3, W] or [W], what tells the object from others
    offset: np.ndarray  # the column's distance from the object's centre, in units of x

    def draw(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """A property of the objects, uniform in [low, high)."""
        return low + (high - low) * uniform(derive(self.key, name), self.cell)

    def chance(self, name: str, probability: float) -> np.ndarray:
        """A property that objects have (1) or lack (0)."""
        return (self.draw(name) < probability).astype(np.float32)

    def pick(self, score: np.ndarray) -> "Scatter":
        """The object of the highest score [3, W] in each column."""
        best = score.argmax(0), np.arange(score.shape[1])
        return Scatter(self.key, self.cell[best], self.offset[best])

    def nearest(self) -> "Scatter":
        return self.pick(-np.abs(self.offset))


def scatter(key: int, x: np.ndarray, spacing: float, jitter: float = 0.5) -> Scatter:
    """Objects one `spacing` apart on average, each moved by up to half of `jitter` spacings."""
    place = x / spacing + derive(key, "phase") * 2.0**-32
    cell = np.floor(place).astype(np.int64) + np.arange(-1, 2)[:, None]  # [3, W]
    offset = place - (cell + 0.5 + jitter * (uniform(key, cell).astype(np.float64) - 0.5))
    return Scatter(key, cell, (offset * spacing).astype(np.float32))


def _mix(bits: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 (public domain): every input bit moves every output bit."""
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))


def _lattice(key: int, x: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """The first lattice point in sight, cells counted from it, and eased places in the cells.

    A phase of the key's own keeps the lattices of different noises from lining up.
    """
    x = x + derive(key, "phase") * 2.0**-32
    cell = np.floor(x)
    first = int(cell.min())
    return first, (cell - first).astype(np.intp), smooth((x - cell).astype(np.float32))
