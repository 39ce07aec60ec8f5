"""What a training tells: numbers for TensorBoard and a CSV file, and pictures it could not read."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common import distributed

SHOWN_PATHS = 10


class Logs:
    """Writes scalars to `folder`: TensorBoard events, and `metrics.csv` with step, name, value."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.events = SummaryWriter(str(folder))
        path = folder / "metrics.csv"
        fresh = not path.exists() or not path.stat().st_size
        if not fresh:
            _cut_unfinished_line(path)
        self._file = path.open("a", newline="")
        self._csv = csv.writer(self._file)
        if fresh:
            self._csv.writerow(["step", "name", "value"])

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
            self._csv.writerow([step, name, value])
        self._file.flush()

    def close(self) -> None:
        self.events.close()
        self._file.close()


def _cut_unfinished_line(path: Path) -> None:
    """Which a full disk or a power cut has left; the next one would be glued to it."""
    written = path.read_bytes()
    whole = written.rfind(b"\n") + 1
    if whole < len(written):
        with path.open("r+b") as file:
            file.truncate(whole)


def progress(
    total: int, name: str, unit: str, shown: bool, initial: int = 0, passing: bool = False
) -> tqdm:
    """A progress bar; in a file, where every change is a new line, it changes rarely.

    A `passing` one, inside another, leaves nothing behind.
    """
    return tqdm(
        total=total,
        initial=initial,
        desc=name,
        unit=unit,
        disable=not shown,
        leave=not passing,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
    )


class Unreadable:
    """Counts and names the pictures of a data set that could not be read.

    Args:
        dataset: `Pictures`, or one whose pictures are not files.
        name: what messages call it.
        device: of the process, for the sum over all of them.
    """

    def __init__(self, dataset: Dataset, name: str, device: torch.device) -> None:
        self.dataset, self.name, self.device = dataset, name, device
        self.told = 0

    def news(self) -> str | None:
        """A message if there are more than at the last call; all processes call this together."""
        if not hasattr(self.dataset, "unreadable"):
            return None
        met = distributed.total(self.dataset.unreadable_flags.to(self.device, torch.int32)).cpu()
        paths = [self.dataset.paths[i] for i in met.nonzero().flatten().tolist()]
        if len(paths) == self.told:
            return None
        self.told = len(paths)
        shown = [*paths[:SHOWN_PATHS], *(["..."] if len(paths) > SHOWN_PATHS else [])]
        return "\n    ".join(
            [
                f"{self.name}: {len(paths)} of {len(self.dataset)} pictures could not be read; "
                "others took their place:",
                *shown,
            ]
        )
