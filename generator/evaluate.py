"""Evaluation while training: the loss of every column, curves of it, and samples.

Shapes: B batch, L columns of an image, S columns of a run, C token channels.
"""

import re
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from common import distributed, images, seeding
from common.distributed import Process
from common.errors import UserError
from common.plots import Panel, Series, read_long, save_curves
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


def parse_columns(text: str, length: int) -> list[int]:
    """The columns of `0-3,8-11`, ends included, or of `all`, which are `length`."""
    if text == "all":
        return list(range(length))
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(end or match[1]) for end in match.groups()) if match else (1, 0)
        if not first <= last < length:
            expected = f"columns such as 0-3,8 among 0 … {length - 1}"
            raise UserError(f"--train_columns: found {part!r} in {text!r}, expected {expected}")
        found |= set(range(first, last + 1))
    return sorted(found)


class ColumnLosses:
    """The mean loss of each of L columns over all batches that are added, on all processes."""

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
        """By column, without those that nothing was added for; all processes call it together."""
        sums, counts = distributed.all_reduce_sum(self.sums).tolist()
        return {i: s / n for i, (s, n) in enumerate(zip(sums, counts, strict=True)) if n}


def save_column_curves(log: Path, path: Path) -> None:
    """Plot a `metrics.csv`: the loss, and that of each column in training and, where it was
    measured, with the averaged weights."""
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
        self.loader = DataLoader(
            Subset(dataset, chosen),
            config.batch_size,
            num_workers=num_workers,
            worker_init_fn=ignore_signals,
        )

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
