"""Data loading for Lightning: each process draws its exact share, and goes on where it stopped."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from common.config import Natural, Positive, instantiate
from common.data.sampler import DrawSampler
from common.errors import UserError
from common.signals import ignore_signals


class ResumableLoader(DataLoader):
    """A loader over a `DrawSampler` that goes on with the next batch after a resume."""

    sampler: DrawSampler
    _given = 0  # batches of the epoch that have been handed out

    def __iter__(self) -> Iterator[Any]:
        # a generator, so that this happens with the first batch, when the epoch has been set
        self._given = self.sampler.start_batch
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.resume(state["epoch"], state["batch"])


class DataModule(pl.LightningDataModule):
    """The data sets of a `data` node, each given as `{target, params}`.

    Batch size and workers are those of one process; `wrap`, of released files, has no effect. The
    trainer needs `use_distributed_sampler=False`: the share of each process is chosen here.
    """

    def __init__(
        self,
        batch_size: Positive,
        train: dict,
        validation: dict | None = None,
        test: dict | None = None,
        num_workers: Natural = 0,
        seed: int = 0,
        wrap: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.nodes = {"train": train, "validation": validation, "test": test}
        self.datasets: dict[str, Dataset] = {}

    def setup(self, stage: str) -> None:
        """Build the data sets that are configured, once."""
        for name, node in self.nodes.items():
            if node is not None and name not in self.datasets:
                self.datasets[name] = instantiate(node, f"data.params.{name}")

    def train_dataloader(self) -> ResumableLoader:
        """Batches for training, all of them whole, in a new order each epoch."""
        dataset, trainer = self.datasets["train"], self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if len(dataset) < self.batch_size * world:
            found = f"found {len(dataset)} images, expected {self.batch_size * world} or more"
            raise UserError(f"data.params.train: {found}")
        return ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=DrawSampler(len(dataset), rank, world, self.batch_size, self.seed),
            num_workers=self.num_workers,
            worker_init_fn=ignore_signals,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
