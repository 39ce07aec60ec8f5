"""Plots of curves, such as the losses in the CSV files that training leaves."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from common.io import replacing
from common.logger import read_rows

Series = dict[float, float]  # value at each step, steps ascending


def read_long(file: Path) -> dict[str, Series]:
    """Curves by name from the CSV file of a `common.logger.MetricLogger`."""
    curves: dict[str, Series] = {}
    for step, name, value in read_rows(file):
        with suppress(ValueError):  # a damaged row
            curves.setdefault(name, {})[int(step)] = float(value)
    return curves


def save_curves(path: str | Path, panels: Mapping[str, Mapping[str, Series]]) -> None:
    """Write panels by title, of curves by name, as one image, two in a row."""
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10.4, 3.4 * rows), dpi=144, layout="constrained")
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for ax, (title, curves) in zip(axes, panels.items(), strict=False):
        count = len(curves)
        colours = matplotlib.colormaps["viridis" if count > 4 else "tab10"].resampled(max(2, count))
        for k, (name, series) in enumerate(curves.items()):
            style = {"color": colours(k), "marker": "o" if len(series) < 12 else None}
            ax.plot(list(series), list(series.values()), label=name, **style)
        ax.set_title(title, loc="left")
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
        if count > 1:
            ax.legend(fontsize=7, frameon=False, ncols=4 if count > 4 else 1)
    if len(panels) % 2:
        axes[-1].remove()
    with replacing(path, durable=False) as file:
        figure.savefig(file, format=Path(path).suffix.removeprefix(".") or "png")
