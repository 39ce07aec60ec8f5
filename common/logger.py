"""Metric logs and progress: TensorBoard events, a CSV file, and progress bars."""

import csv
import sys
from pathlib import Path

from tqdm import tqdm

from common.io import replacing


class MetricLogger:
    """Writes scalars to `folder`: TensorBoard events, and `metrics.csv` with step, name, value. Of
    a run that goes on from the update `step`, rows of later ones, which are made again, are cut."""

    def __init__(self, folder: str | Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds, also for readers

        path = Path(folder) / "metrics.csv"
        rows = [row for row in read_rows(path) if int(row[0]) <= step]
        with replacing(path) as file:
            for row in [["step", "name", "value"], *rows]:
                file.write(f"{','.join(row)}\r\n".encode())
        self.events = SummaryWriter(str(folder), purge_step=step + 1)
        self._file = path.open("a", newline="")
        self._csv = csv.writer(self._file)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write named values of one step."""
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
            self._csv.writerow([step, name, value])
        self._file.flush()

    def close(self) -> None:
        """Write what is left."""
        self.events.close()
        self._file.close()


def read_rows(path: Path) -> list[list[str]]:
    """The whole rows of a log; a full disk or a power cut may have left others."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").replace("\0", "").splitlines(keepends=True)
    rows = [line.strip().split(",") for line in lines if line.endswith("\n")]
    return [row for row in rows if len(row) == 3 and row[0].isdecimal()]


def progress_bar(
    total: int, name: str, unit: str, shown: bool, initial: int = 0, leave: bool = True
) -> tqdm:
    """A progress bar, which changes rarely in a file."""
    wait = 0.1 if sys.stderr.isatty() else 10
    return tqdm(
        None, name, total, leave, initial=initial, unit=unit, disable=not shown, mininterval=wait
    )
