"""Evaluation while training: the loss of every column, curves of it, and samples.

Shapes: B batch, L columns of an image, S columns of a run, C token channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import distributed, images, seeding
from common.data.sampler import Draw, DrawSampler
from common.distributed import Process
from common.errors import UserError
from common.plots import Panel, Series, read_long, save_curves
from common.seeding import BatchDraws
from common.signals import ignore_signals
from generator.checkpoints import LoadedGenerator
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
            raise UserError(
                f"--train_columns: found {part!r} in {text!r}, expected columns such as 0-3,8 "
                f"among 0 … {length - 1}"
            )
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


class Few(Dataset):
    """So many items, evenly spread over a data set; an image has one crop and flip for ever."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: Draw) -> Any:
        return self.dataset[draw.index * len(self.dataset) // self.count]


class Evaluation:
    """The flow-matching loss of every column: with its condition, without dropout, from position 0.

    The draws are those of the seed, so that two models, or one at two times, are measured alike.

    Args:
        dataset: of images or cached tokens.
        count: so many of them, or fewer, in whole batches of `batch_size` a process.
        tokens: of a batch.
        repeats: flow draws of each token.
    """

    def __init__(
        self,
        dataset: Dataset,
        count: int,
        batch_size: int,
        process: Process,
        tokens: TokenSampler,
        seed: int,
        repeats: int,
        num_workers: int = 0,
    ) -> None:
        together = batch_size * process.world
        found = min(count, len(dataset))
        if found < together:
            raise UserError(
                f"--eval_images: found {found} images to measure, expected at least the {together} "
                "of one batch"
            )
        self.process, self.tokens, self.seed, self.repeats = process, tokens, seed, repeats
        few = Few(dataset, found // together * together)
        place = (process.rank, process.world)
        sampler = DrawSampler(len(few), *place, batch_size, seed, shuffle=False)
        self.loader = DataLoader(
            few, batch_size, sampler=sampler, num_workers=num_workers, worker_init_fn=ignore_signals
        )

    @torch.inference_mode()
    def __call__(self, model: Generator) -> dict[int, float]:
        """Mean loss by column; `model` is in evaluation mode."""
        process, losses = self.process, None
        for i, batch in enumerate(self.loader):
            randomness = seeding.generator(self.seed, "evaluation", i, device=process.device)
            rows = BatchDraws(randomness, process.rank, process.world)
            tokens, labels = self.tokens(batch, rows)
            draws = Draws.random(tokens, rows, drop_probability=0.0, repeats=self.repeats)
            losses = losses or ColumnLosses(tokens.shape[1], process.device)
            losses.add(token_losses(model, tokens, labels, draws))
        return losses.means()


@dataclass(frozen=True)
class Preview:
    """A grid of samples of all classes in turn, from the same noise every time.

    Args:
        open_tokenizer: gives the tokenizer, on the generator's device, when it is first needed.
        config: how they are sampled, and how wide.
    """

    open_tokenizer: Callable[[], Tokenizer]
    config: SampleConfig

    def __call__(self, model: Generator, path: Path) -> None:
        """Sample into one file; `model` is in evaluation mode."""
        numbers = range(PREVIEWED)
        labels = [k % model.config.classes for k in numbers]
        names = list(map(str, range(model.config.classes)))
        found = torch.stack(
            list(
                generate(LoadedGenerator(model, names), self.open_tokenizer(), labels, self.config)
            )
        )
        images.save_grid(path, found, columns=round(PREVIEWED**0.5))
