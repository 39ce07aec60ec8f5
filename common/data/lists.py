"""Pictures that a text file lists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from common import images
from common.data.folders import SUFFIXES, Listing, Pictures
from common.errors import UserError

# A suffix says where a path with spaces ends and a label begins.
ENTRY = re.compile(rf"(.*\.(?:{'|'.join(s[1:] for s in SUFFIXES)}))(?:\s+(\d+))?", re.IGNORECASE)


class ImageList(Pictures):
    """Pictures listed in a text file: a path a line, maybe with a label, `forest/1.jpg 7`.

    Blank lines and lines that begin with `#` are left out. Without labels the class of a picture is
    its folder as it is listed, and labels count these in the order of their names.

    Args:
        file: the list.
        size: height of the crop in pixels.
        train: random crop and flip; otherwise the centre crop, not flipped.
        flip: flip horizontally with probability 1/2 in training.
        seed: for crops and flips.
        width: width of the crop; `size` if not given.
        root: folder that all paths start from, also those that begin with `/`, as in the lists of
            Places365. Without it, relative paths start from the folder of the list.
        interpolation: when resizing: bicubic, pil_bilinear or cv2_bilinear.

    Raises:
        UserError: naming the file, and the line that is wrong. Of the pictures only the first one
            is looked for; others that are missing count as unreadable.
    """

    def __init__(
        self,
        file: str,
        size: int,
        train: bool = False,
        flip: bool = True,
        seed: int = 0,
        width: int | None = None,
        root: str | None = None,
        interpolation: images.Interpolation = "bicubic",
    ) -> None:
        start = os.path.dirname(file) if root is None else root
        listing = parse(read_lines(file), start, file, rooted=root is not None)
        super().__init__(file, listing, size, width, train, train and flip, seed, interpolation)


def read_lines(file: str | Path) -> list[str]:
    """The lines of a text file; bytes that are not UTF-8 stand for themselves, as in file names."""
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            return list(lines)
    except OSError as error:
        raise UserError(f"{file}: cannot read this list of pictures ({error.strerror})") from None


def parse(lines: Iterable[str], start: str | Path, file: str | Path, rooted: bool) -> Listing:
    """The pictures that `lines` name; see `ImageList`.

    Args:
        lines: of the list.
        start: folder from which relative paths start,
        rooted: and those that begin with `/` too.
        file: name of the list, for messages.
    """
    start = os.fspath(start)
    paths: list[str] = []
    labels: list[str] = []  # numbers, or the folders that are the classes
    numbered = False
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        entry = ENTRY.fullmatch(line)
        if entry is None:
            raise UserError(
                f"{file}: line {number}: found {line!r}, expected the path of a picture, and maybe "
                "a space and its label, a whole number from 0 on"
            )
        path, label = entry.groups()
        path = path.lstrip("/") if rooted else path
        whole = os.path.join(start, path)
        if not paths:
            numbered = label is not None
            if not os.path.exists(whole):
                raise UserError(
                    f"{file}: line {number}: no such picture {whole}; expected paths that start "
                    f"from {start or '.'}"
                )
        if (label is not None) != numbered:
            found = "a label" if label is not None else "no label"
            raise UserError(
                f"{file}: line {number}: found {found}, unlike in the lines before; expected "
                "labels in all lines or in none"
            )
        paths.append(whole)
        labels.append(label if numbered else os.path.dirname(path) or ".")
    if not paths:
        raise UserError(f"{file}: lists no pictures")
    if numbered:
        values = [int(label) for label in labels]
        return Listing(paths, values, [str(k) for k in range(max(values) + 1)])
    names = sorted(set(labels))
    order = {name: k for k, name in enumerate(names)}
    return Listing(paths, [order[name] for name in labels], names)
