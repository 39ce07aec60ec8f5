"""The columns of a training image one by one: which are trained, and what each loses.

Shapes: B batch, L columns of an image, S columns of a run, C token channels.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from common import distributed
from common.errors import UserError
from common.plots import Panel, Series, read_long, save_curves
from common.seeding import BatchDraws


def parse_columns(text: str, length: int) -> list[int]:
    """The columns of `0-3,8-11`, ends included, or of `all`, which are `length`.

    Raises:
        UserError: it is of another form, or names a column that images do not have.
    """
    if text == "all":
        return list(range(length))
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(end or match[1]) for end in match.groups()) if match else (1, 0)
        if not first <= last < length:
            raise UserError(
                f"--train_columns: found {part!r} in {text!r}, expected columns such as 0-3,8 "
                f"among 0 … {length - 1}"
            )
        found |= set(range(first, last + 1))
    return sorted(found)


def random_runs(tokens: Tensor, columns: int, draws: BatchDraws) -> tuple[Tensor, Tensor]:
    """A run of neighbouring columns of each image, at a place that each draws for itself.

    Args:
        tokens: [B, L, C].
        columns: S, at most L.
        draws: rows of the whole batch.

    Returns:
        Runs [B, S, C], and the columns that they are, [B, S].
    """
    batch, length, channels = tokens.shape
    starts = (draws.uniform(batch, 1) * (length - columns + 1)).long()
    numbers = starts + torch.arange(columns, device=tokens.device)  # [B, S]
    return tokens.gather(1, numbers[..., None].expand(-1, -1, channels)), numbers


class ColumnLosses:
    """The mean loss of each column over all batches that are added, on all processes.

    Args:
        length: L.
        device: of the losses.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, length, device=device)  # of losses, and of their weights

    def add(self, losses: Tensor, numbers: Tensor | None = None) -> None:
        """Losses [repeats, B, L] of whole images, or [repeats, B, S] of columns `numbers` [B, S].

        Batches of whole images have one size, on all processes.
        """
        losses = losses.detach()
        if numbers is None:
            means = losses.mean(dim=(0, 1))
            self.sums += torch.stack([means, torch.ones_like(means)])
        else:
            means = losses.mean(0).flatten()
            self.sums.index_add_(1, numbers.flatten(), torch.stack([means, torch.ones_like(means)]))

    def means(self) -> dict[int, float]:
        """By column; without those that nothing was added for. All processes call this
        together."""
        sums, counts = distributed.total(self.sums).tolist()
        return {i: s / n for i, (s, n) in enumerate(zip(sums, counts, strict=True)) if n}


def save_picture(log: Path, path: Path) -> None:
    """Draw the curves of a `metrics.csv`: the loss, and that of each column in training and, where
    it was measured, with the averaged weights."""
    curves = read_long(log)

    def of(prefix: str) -> dict[str, Series]:
        names = sorted(name for name in curves if name.startswith(prefix))
        return {name.removeprefix(prefix): curves[name] for name in names}

    whole = {"training": curves["train/loss"], "averaged weights": curves.get("eval/loss", {})}
    panels = {
        "flow-matching loss": {name: series for name, series in whole.items() if series},
        "loss of each column in training": of("columns/loss_"),
        "loss of each column, averaged weights": of("eval_columns/loss_"),
    }
    save_curves(path, [Panel(title, series) for title, series in panels.items() if series])
