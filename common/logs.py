"""What a training tells: numbers for TensorBoard and a CSV file, and pictures it could not read."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter


class Logs:
    """Writes scalars to `folder`: TensorBoard events, and `metrics.csv` with step, name, value."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.events = SummaryWriter(str(folder))
        path = folder / "metrics.csv"
        fresh = not path.exists()
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
