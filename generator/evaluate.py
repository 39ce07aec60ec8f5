"""Evaluation while training: the loss of every column, curves of it, and samples.

Shapes: B batch, L columns of an image, S columns of a run, C token channels.
"""

from pathlib import Path

import torch
from torch import Tensor

from common import distributed, images
from common.plots import read_long, save_curves
from generator.checkpoints import LoadedGenerator
from generator.data import Tokenizer
from generator.generate import generate
from generator.model import Generator
from generator.sampling import SampleConfig


class ColumnLosses:
    """The mean loss of each of L columns over all batches that are added, on all processes."""

    def __init__(self, length: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, length, device=device)  # of losses, and of their weights

    def add(self, losses: Tensor, columns: Tensor | None = None) -> None:
        """Losses [repeats, B, L] of whole images, or [repeats, B, S] of `columns` [B, S]; batches
        of whole images have one size, on all processes."""
        losses = losses.detach()
        means = losses.mean(dim=(0, 1)) if columns is None else losses.mean(0).flatten()
        index = torch.arange(len(means), device=means.device) if columns is None else columns
        self.sums.index_add_(1, index.flatten(), torch.stack([means, torch.ones_like(means)]))

    def means(self) -> dict[int, float]:
        """By column, without those that nothing was added for; all processes call it together."""
        sums, counts = distributed.all_reduce_sum(self.sums).tolist()
        return {i: s / n for i, (s, n) in enumerate(zip(sums, counts, strict=True)) if n}


def save_column_curves(log: Path, path: Path) -> None:
    """Plot a `metrics.csv`: the loss, and that of each column in training and, where it was
    measured, with the averaged weights."""
    curves = read_long(log)
    titles = {
        "flow-matching loss": ("train/loss", "eval/loss"),
        "loss of each column in training": ("columns/loss_",),
        "loss of each column, averaged weights": ("eval_columns/loss_",),
    }
    panels = {}
    for title, begins in titles.items():
        found = {n.rpartition("_")[2]: curves[n] for n in sorted(curves) if n.startswith(begins)}
        if found:
            panels[title] = found
    save_curves(path, panels)


def save_preview(model: Generator, path: Path, tokenizer: Tokenizer, config: SampleConfig) -> None:
    """Write 16 samples, of all classes in turn, from the same noise every time."""
    labels = [k % model.config.classes for k in range(16)]
    found = list(generate(LoadedGenerator(model, []), tokenizer, labels, config))
    images.save_grid(path, torch.stack(found), columns=4)
