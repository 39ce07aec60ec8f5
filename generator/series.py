"""The numbered images of a folder: their classes, their files, and which are still to be drawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import seeding
from common.errors import UserError


def image_labels(choice: str, class_names: Sequence[str], seed: int) -> Callable[[int], int]:
    """Which class the image of a number has, whatever the number of images.

    Args:
        choice: `balanced`, image k has class k modulo the number of classes; `random`, evenly,
            from the image's own stream; or names and numbers of classes, taken in turn, such as
            `3,7-9,sea`.
        class_names: of all classes.
        seed: of random classes.

    Raises:
        UserError: a class that is not there.
    """
    count = len(class_names)
    if choice == "random":
        return lambda k: int(seeding.stream(seed, "label", k).integers(count))
    if choice == "balanced":
        return lambda k: k % count
    chosen = [label for part in choice.split(",") for label in _classes(part.strip(), class_names)]
    return lambda k: chosen[k % len(chosen)]


def _classes(part: str, names: Sequence[str]) -> range:
    """The classes of one name, number or span of numbers."""
    if part in names:
        return range(names.index(part), names.index(part) + 1)
    first, _, last = part.partition("-")
    if first.isdecimal() and (last or first).isdecimal():
        span = range(int(first), int(last or first) + 1)
        if span and span[-1] < len(names):
            return span
    shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    raise UserError(
        f"--labels: found {part!r}, expected balanced, random, or classes by their name or number, "
        f"0 … {len(names) - 1} ({shown})"
    )


@dataclass(frozen=True)
class Series:
    """Images 0 … count − 1 in files of a folder, drawn in batches that are always the same ones.

    A batch that was begun is drawn again as a whole, since how a product of matrices is rounded
    depends on the number of its rows: so any number of processes, with or without a break, leaves
    the same bytes.

    Args:
        folder: of the files, which holds nothing else.
        count: images.
        batch: images that are drawn together.
        suffix: of the files, with its dot.
    """

    folder: Path
    count: int
    batch: int
    suffix: str = ".png"

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self.suffix}"

    def paths(self) -> list[Path]:
        return [self.path(k) for k in range(self.count)]

    def done(self) -> set[int]:
        """Numbers of the images that are there.

        Raises:
            UserError: a file that is none of them.
        """
        if not self.folder.exists():
            return set()
        names = {self.path(k).name: k for k in range(self.count)}
        files = [f for f in os.scandir(self.folder) if not f.name.endswith(".tmp")]
        found = {f.name: f.stat().st_size for f in files}
        for name in found:
            if name not in names:
                raise UserError(
                    f"{self.folder}: found {name}, which is none of the {self.count} images of "
                    "--num_images; expected nothing else there"
                )
        # a full disk leaves empty files
        return {names[name] for name, size in found.items() if size}

    def batches(self, done: set[int]) -> list[range]:
        """Numbers of images that are drawn together, where one at least is not done."""
        starts = range(0, self.count, self.batch)
        batches = [range(start, min(start + self.batch, self.count)) for start in starts]
        return [numbers for numbers in batches if not done.issuperset(numbers)]
