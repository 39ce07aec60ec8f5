"""Loss curves from the CSV files that training leaves."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import UserError
from common.io import replacing

Series = dict[float, float]  # value at each step, steps ascending


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        title: what is shown, with its unit.
        series: by name; many of them are coloured in order, from dark to light.
        log: a logarithmic axis of values.
        across: what the values lie over.
    """

    title: str
    series: dict[str, Series]
    log: bool = False
    across: str = "step"


def read_wide(files: Sequence[Path]) -> dict[str, Series]:
    """Curves by name from CSV files with a column for each name and one called `step`.

    Lightning's `CSVLogger` writes these, a file for each start of the run (`version_0`, ...). They
    are given in order; where a resumed run repeats a step, its values count.

    Raises:
        UserError: no files, or one that is not of this form.
    """
    rows = []
    for file in files:
        for row in _rows(file, {"step"}):
            rows += [(file, row["step"], k, v) for k, v in row.items() if k != "step" and v]
    return _collect(rows, files)


def read_long(file: Path) -> dict[str, Series]:
    """Curves by name from a CSV file with the columns `step,name,value` (see `common.logger`).

    Raises:
        UserError: the file is missing or not of this form.
    """
    names = ("step", "name", "value")
    return _collect([(file, *(row[k] for k in names)) for row in _rows(file, set(names))], [file])


def pick(curves: dict[str, Series], name: str, source: Path) -> Series:
    """The curve of that name.

    Raises:
        UserError: training left no value of it in `source`.
    """
    if name not in curves:
        raise UserError(
            f"{source}: found no {name}, expected some of {', '.join(curves)}; was the run shorter "
            "than one logging interval?"
        )
    return curves[name]


def smooth(series: Series, weight: float = 0.9) -> Series:
    """A running mean, corrected for its start: each older value counts `weight` times less."""
    total, count, result = 0.0, 0.0, {}
    for step, value in series.items():
        total = weight * total + value
        count = weight * count + 1
        result[step] = total / count
    return result


def save_curves(path: str | Path, panels: Sequence[Panel]) -> None:
    """Write the panels as one picture, two in a row."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, panel in zip(axes, panels, strict=False):
        _draw(ax, panel)
    for ax in axes[len(panels) :]:
        ax.remove()
    kind = Path(path).suffix.removeprefix(".") or "png"
    with replacing(path, durable=False) as file:
        figure.savefig(file, format=kind)


def _draw(ax, panel: Panel) -> None:
    many = len(panel.series) > 4
    colours = (
        matplotlib.colormaps["viridis"].resampled(max(2, len(panel.series))).colors
        if many
        else matplotlib.colormaps["tab10"].colors
    )
    for colour, (name, series) in zip(colours, panel.series.items(), strict=False):
        steps, values = list(series), list(series.values())
        dense = len(steps) > 40
        if dense and not many:
            ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        drawn = smooth(series) if dense else series
        marker = "o" if len(steps) < 12 else None
        ax.plot(steps, list(drawn.values()), color=colour, linewidth=1.6, marker=marker, label=name)
    ax.set_title(panel.title, fontsize=10, loc="left")
    ax.set_xlabel(panel.across, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if panel.log:
        ax.set_yscale("log")
    if len(panel.series) > 1:
        ax.legend(fontsize=6 if many else 8, frameon=False, ncols=4 if many else 1)


def _rows(file: Path, needed: set[str]) -> Iterable[dict[str, str]]:
    try:
        with open(file, newline="") as lines:
            reader = csv.DictReader(lines)
            absent = needed - set(reader.fieldnames or ())
            if absent:
                raise UserError(f"{file}: has no column {', '.join(sorted(absent))}")
            yield from reader
    except OSError as error:
        raise UserError(f"{file}: cannot read this log ({error.strerror})") from None


def _collect(
    rows: Iterable[tuple[Path, str, str, str]], files: Sequence[Path]
) -> dict[str, Series]:
    curves: dict[str, Series] = {}
    for file, step, name, value in rows:
        try:
            curves.setdefault(name, {})[int(step)] = float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"{file}: found step {step!r} with {name} {value!r}, expected numbers"
            ) from None
    if not curves:
        names = ", ".join(map(str, files)) or "no files"
        raise UserError(f"training logs: found no values in {names}")
    return {name: dict(sorted(series.items())) for name, series in curves.items()}
