"""Evaluation while training: the loss of every column, curves of it, and samples.

Shapes: B batch, L columns of an image, S columns of a run, C token channels.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from common import distributed, images, seeding
from common.distributed import Process
from common.errors import UserError
from common.plots import Panel, read_long, save_curves
from common.seeding import BatchDraws
from common.signals import ignore_signals
from generator.checkpoints import LoadedGenerator
from generator.config import TrainConfig
from generator.data import Tokenizer, TokenSampler
from generator.generate import generate
from generator.model import Generator
from generator.objective import Draws, token_losses
from generator.sampling import SampleConfig

PREVIEWED = 16  # samples of one preview


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
    panels = []
    for title, begins in titles.items():
        found = {n.rpartition("_")[2]: curves[n] for n in sorted(curves) if n.startswith(begins)}
        panels += [Panel(title, found)] if found else []
    save_curves(path, panels)


class Evaluation:
    """The flow-matching loss of every column: with its condition, without dropout, from position 0.

    Of `eval_images` items, evenly spread over the data, as many as make whole batches, with the
    same draws every time.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokens: TokenSampler,
        config: TrainConfig,
        process: Process,
        num_workers: int = 0,
    ) -> None:
        together, length = config.batch_size * process.world, len(dataset)
        count = min(config.eval_images, length) // together * together
        if not count:
            raise UserError(f"--eval_images: expected at least the {together} images of one batch")
        self.config, self.process, self.tokens = config, process, tokens
        chosen = [k * length // count for k in range(process.rank, count, process.world)]
        workers = {"num_workers": num_workers, "worker_init_fn": ignore_signals}
        self.loader = DataLoader(Subset(dataset, chosen), config.batch_size, **workers)

    @torch.inference_mode()
    def __call__(self, model: Generator) -> dict[int, float]:
        """Mean loss by column; `model` is in evaluation mode."""
        process, config, losses = self.process, self.config, None
        for i, batch in enumerate(self.loader):
            randomness = seeding.generator(config.seed, "evaluation", i, device=process.device)
            rows = BatchDraws(randomness, process.rank, process.world)
            tokens, labels = self.tokens(batch, rows)
            draws = Draws.random(tokens, rows, 0, 0.0, config.diffusion_batch_mul)
            losses = losses or ColumnLosses(tokens.shape[1], process.device)
            losses.add(token_losses(model, tokens, labels, draws))
        return losses.means()


def save_preview(model: Generator, path: Path, tokenizer: Tokenizer, config: SampleConfig) -> None:
    """Write a grid of samples of all classes in turn, from the same noise every time."""
    labels = [k % model.config.classes for k in range(PREVIEWED)]
    found = list(generate(LoadedGenerator(model, []), tokenizer, labels, config))
    images.save_grid(path, torch.stack(found), columns=round(PREVIEWED**0.5))
