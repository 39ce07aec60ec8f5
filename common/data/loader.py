"""Data for Lightning: loaders that each process draws its exact share from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from common.config import instantiate
from common.data.sampler import DrawSampler
from common.errors import UserError
from common.signals import leave_signals_to_the_trainer


class ResumableLoader(DataLoader):
    """A loader over a `DrawSampler` that goes on with the next batch after a resume."""

    sampler: DrawSampler
    _given = 0

    def __iter__(self) -> Iterator[Any]:
        # a generator, so that this happens with the first batch, when the epoch has been set
        self._given = self.sampler.start_batch
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been handed out."""
        return {"epoch": self.sampler.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that `state` counts."""
        self.sampler.resume(state["epoch"], state["batch"])


class DataModule(pl.LightningDataModule):
    """The data sets of a `data` node, each given as `{target, params}`.

    Training draws in a new order each epoch and leaves out an incomplete last batch; validation
    and test go through the data set in order, every picture once over all processes. The trainer
    needs `use_distributed_sampler=False`, because the share of each process is chosen here.

    Args:
        batch_size: pictures in a batch of one process.
        train: the training data set.
        validation: the validation data set.
        test: the test data set.
        num_workers: processes that read pictures, for each training process.
        seed: for the order of training.
        wrap: in released files, without effect.
    """

    def __init__(
        self,
        batch_size: int,
        train: dict,
        validation: dict | None = None,
        test: dict | None = None,
        num_workers: int = 0,
        seed: int = 0,
        wrap: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise UserError(f"data.params.{name}: found {value}, expected at least {least}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.nodes = {"train": train, "validation": validation, "test": test}
        self.datasets: dict[str, Dataset] = {}

    def setup(self, stage: str) -> None:
        """Build the data sets that are configured, once."""
        if not self.datasets:
            self.datasets = {
                name: instantiate(node, f"data.params.{name}")
                for name, node in self.nodes.items()
                if node is not None
            }

    def train_dataloader(self) -> ResumableLoader:
        """Batches for training; see `ResumableLoader` for a start in the middle of an epoch."""
        length, world = len(self.datasets["train"]), self._processes()[1]
        together = self.batch_size * world
        if length < together:
            raise UserError(
                f"data.params.batch_size: {self.batch_size} on {world} process(es) makes a batch "
                f"of {together}, but data.params.train has {length} picture(s); expected at least "
                "one whole batch"
            )
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """Every validation picture once, or nothing if none are configured."""
        return self._whole("validation")

    def test_dataloader(self) -> DataLoader | list:
        """Every test picture once, or nothing if none are configured."""
        return self._whole("test")

    def _whole(self, name: str) -> DataLoader | list:
        if name not in self.datasets:
            return []
        length, world = len(self.datasets[name]), self._processes()[1]
        if length < world:
            raise UserError(
                f"data.params.{name}: has {length} picture(s) for {world} processes, "
                "expected at least one for each"
            )
        return self._loader(name, shuffle=False)

    def _loader(self, name: str, shuffle: bool) -> ResumableLoader:
        dataset = self.datasets[name]
        rank, world = self._processes()
        sampler = DrawSampler(
            len(dataset), rank, world, self.batch_size, self.seed, shuffle, drop_last=shuffle
        )
        return ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_the_trainer,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _processes(self) -> tuple[int, int]:
        """The rank of this process, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
