"""What every column loses with given weights, measured the same way each time.

Shapes: B batch, L columns, C token channels.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

from common import seeding
from common.data.sampler import Draw, DrawSampler
from common.distributed import Process
from common.errors import UserError
from common.seeding import BatchDraws
from common.signals import leave_signals_to_the_trainer
from generator.columns import ColumnLosses
from generator.data import Tokenise
from generator.model import Generator
from generator.objective import Draws, token_losses


class Few(Dataset):
    """So many items, evenly spread over a data set; a picture has one crop and flip for ever."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: Draw) -> tuple:
        return self.dataset[draw.index * len(self.dataset) // self.count]


class Evaluation:
    """The flow-matching loss of every column: with the class, without dropout, from position 0.

    The draws are those of the seed, so that two models, or one at two times, are measured alike.

    Args:
        dataset: of pictures or cached tokens.
        images: so many of them, or fewer, in whole batches.
        batch_size: of one process.
        process: this process.
        tokenise: turns a batch into tokens.
        seed: of all draws.
        repeats: flow draws of each token.
        num_workers: of the loader.

    Raises:
        UserError: there are fewer images than one batch of all processes takes.
    """

    def __init__(
        self,
        dataset: Dataset,
        images: int,
        batch_size: int,
        process: Process,
        tokenise: Tokenise,
        seed: int,
        repeats: int,
        num_workers: int = 0,
    ) -> None:
        together = batch_size * process.world
        found = min(images, len(dataset))
        if found < together:
            raise UserError(
                f"--eval_images: found {found} images to measure, expected at least the {together} "
                "of one batch"
            )
        self.process, self.tokenise, self.seed, self.repeats = process, tokenise, seed, repeats
        few = Few(dataset, found // together * together)
        place = (process.rank, process.world)
        sampler = DrawSampler(len(few), *place, batch_size, seed, shuffle=False)
        self.loader = DataLoader(
            few,
            batch_size,
            sampler=sampler,
            num_workers=num_workers,
            worker_init_fn=leave_signals_to_the_trainer,
        )

    @torch.inference_mode()
    def __call__(self, model: Generator) -> dict[int, float]:
        """Mean loss by column; `model` is in evaluation mode."""
        process, losses = self.process, None
        for i, batch in enumerate(self.loader):
            randomness = seeding.generator(self.seed, "evaluation", i, device=process.device)
            rows = BatchDraws(randomness, process.rank, process.world)
            tokens, labels = self.tokenise(batch, rows)
            draws = Draws.random(tokens, rows, drop_probability=0.0, repeats=self.repeats)
            if losses is None:
                losses = ColumnLosses(tokens.shape[1], process.device)
            losses.add(token_losses(model, tokens, labels, draws))
        return losses.means()
