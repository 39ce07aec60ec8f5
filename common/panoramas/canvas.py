"""Hashed noise, a window onto an endless strip, and the few strokes that scenes are painted with.

All is integer arithmetic or one of the operations that IEEE 754 rounds correctly (+ - * / sqrt
floor), never a library's exp or sin, and depends on a key and absolute coordinates alone: a pixel
is the same, bit for bit, on every machine and through every window.

Lengths are in image heights: x to the right without end, y upward from 0 to 1, so that a larger
image shows the same scene, sharper. Colours are [3, 1, W] arrays in [0, 1].

Shapes: W columns, H rows. A line is a height for each column [W]; a cover is an opacity [H, W].
"""

from collections.abc import Callable
from dataclasses import dataclass
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


def ramp(start: float, end: float, value: np.ndarray) -> np.ndarray:
    """0 before `start`, 1 after `end`, straight in between."""
    return np.clip((value - start) * (1 / (end - start)), 0, 1)


def paint(image: np.ndarray, colour: Any, cover: Any) -> None:
    """Lays a colour over the image [3, H, W], in place."""
    image += (colour - image) * cover


@dataclass(frozen=True)
class View:
    """A window onto a strip, and what can be asked of the strip there."""

    key: int  # of the strip
    x: np.ndarray  # [W] float64, column centres
    y: np.ndarray  # [H, 1] float32 row centres; [H, W] in a reflection
    height: int  # pixels

    def fixed(self, name: str, low: float, high: float) -> float:
        """A property of the whole strip."""
        return low + (high - low) * derive(self.key, name) * 2.0**-32

    def noise(self, x: np.ndarray, *names: int | str) -> np.ndarray:
        """Smooth noise in [0, 1] at each x, with one lattice point a unit."""
        return noise_1d(derive(self.key, *names), x)

    def wave(self, name: str, frequency: float, octaves: int = 1) -> np.ndarray:
        """Smooth noise along the strip in [0, 1]: [W]."""
        return self._octaves(name, octaves, lambda key, f: noise_1d(key, self.x * (frequency * f)))

    def texture(self, name: str, across: float, up: float, octaves: int = 1) -> np.ndarray:
        """Smooth noise over the image in [0, 1], with a frequency for each direction: [H, W]."""
        x, y = self.x * across, self.y[:, 0].astype(np.float64) * up
        return self._octaves(name, octaves, lambda key, f: noise_2d(key, x * f, y * f))

    def scatter(self, name: str, spacing: float, jitter: float = 0.5) -> Scatter:
        """Objects along the strip one `spacing` apart on average, each moved by up to half of
        `jitter` spacings; for each column the three that may be seen there."""
        key = derive(self.key, name)
        place = self.x / spacing + derive(key, "phase") * 2.0**-32
        cell = np.floor(place).astype(np.int64) + np.arange(-1, 2)[:, None]  # [3, W]
        offset = place - (cell + 0.5 + jitter * (uniform(key, cell).astype(np.float64) - 0.5))
        return Scatter(key, cell, (offset * spacing).astype(np.float32))

    def edge(self, distance: np.ndarray) -> np.ndarray:
        """Cover of where `distance` is positive, its edge one pixel soft."""
        return np.clip(distance * self.height + 0.5, 0, 1)

    def below(self, line: Any) -> np.ndarray:
        """Cover of what lies under the line."""
        return self.edge(line - self.y)

    def colours(self, *moods: str) -> np.ndarray:
        """The colours in the mood of each column, [colours, 3, 1, W]; each mood is a row of
        hexadecimal ones."""
        table = [[list(bytes.fromhex(colour)) for colour in row.split()] for row in moods]
        palette = np.array(table, dtype=np.float32) / 255  # [moods, colours, 3] in [0, 1]
        hour = np.clip(1.5 * self.wave("hour", 0.1) - 0.25, 0, 1) * (len(palette) - 1)
        first = np.minimum(hour.astype(np.intp), len(palette) - 2)
        mixed = mix(palette[first], palette[first + 1], (hour - first)[:, None, None])  # [W, n, 3]
        mixed = mixed.astype(np.float32).transpose(1, 2, 0)
        return np.ascontiguousarray(mixed)[:, :, None]

    def sky(self, top: np.ndarray, bottom: np.ndarray, horizon: float) -> np.ndarray:
        """A new image [3, H, W]: `bottom` at the horizon, `top` above."""
        return mix(bottom, top, smooth(ramp(horizon, 1.15, self.y)))

    def _octaves(self, name: str, octaves: int, noise: Callable) -> np.ndarray:
        total: Any = 0.0
        weight = 2.0**octaves - 1
        for octave in range(octaves):
            layer = noise(derive(self.key, name, octave), 2.0**octave)
            total = total + 2.0 ** (octaves - 1 - octave) / weight * layer
        return total


def wisps(image: np.ndarray, view: View) -> None:
    """Thin streaks of high cloud."""
    streaks = ramp(0.5, 0.85, view.texture("wisps", 1.1, 6, 3))
    paint(image, np.float32(1), 0.6 * streaks * ramp(0.4, 0.85, view.y))


def clouds(
    image: np.ndarray, view: View, name: str, base: float, size: float, white: Any, shade: Any
) -> None:
    """A row of heaped clouds with flat, shaded undersides, at a height and of a size."""
    bank = ramp(0.42, 0.7, view.wave(f"{name} bank", 0.3 / size))
    rise = 0.0
    for share in (1.0, 0.45):
        puffs = view.scatter(f"{name} puffs {share}", 0.7 * share * size, 0.8)
        radius = puffs.draw("radius", 0.3, 0.75) * (share * size)
        dome = np.maximum(0, np.square(radius) - np.square(puffs.offset))
        rise = rise + bank * np.sqrt(dome).max(0)
    above = view.y - base - 0.1 * size * view.wave(f"{name} base", 0.5 / size)
    lit = smooth(ramp(-0.1 * size, 0.8 * size, above))
    underside = ramp(-0.1 * size, 0.05 * size, above)
    paint(image, mix(shade, white, lit), view.edge(rise - above) * underside * ramp(0, 0.3, bank))


def sun(
    image: np.ndarray, view: View, colour: np.ndarray, low: float, high: float, radius: float
) -> None:
    """Now and then along the strip, a disc with its halo, somewhere between two heights."""
    disc = view.scatter("sun", 5, 0.8).nearest()
    up = view.y - disc.draw("level", low, high)
    distance = np.sqrt(np.square(disc.offset) + np.square(up))
    paint(image, colour, 0.6 * np.square(1 - ramp(0, 6 * radius, distance)))
    paint(image, colour, 0.9 * view.edge(radius - distance))


def stars(image: np.ndarray, view: View) -> None:
    """Small stars, one in each square of a hidden grid, most of them faint."""
    x, y = view.x * 9, view.y * 9
    cell = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    to_x, to_y, bright = (uniform(derive(view.key, "star", i), *cell) for i in range(3))
    from_x = (x - cell[0]).astype(np.float32) - 0.2 - 0.6 * to_x
    from_y = (y - cell[1]).astype(np.float32) - 0.2 - 0.6 * to_y
    disc = np.maximum(1 - 70 * (np.square(from_x) + np.square(from_y)), 0)
    image += 0.6 * np.square(bright) * disc


def panes(view: View, block: Scatter, foot: float) -> np.ndarray:
    """Cover of the windows of a row of buildings that stand at `foot`; some rooms are dark."""
    pitch = 0.05
    across, up = block.offset / pitch, (view.y - foot) / pitch
    column, floor = np.floor(across), np.floor(up)
    room = block.cell * 64 + column.astype(np.int64), floor.astype(np.int64)
    lit = ramp(0.5, 0.8, uniform(derive(block.key, "room"), *room))
    pane = view.edge(0.014 - pitch * np.abs(across - column - 0.5))
    return lit * pane * view.edge(0.015 - pitch * np.abs(up - floor - 0.5))
