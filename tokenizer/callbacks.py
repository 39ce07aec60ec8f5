"""What happens beside the updates of a training: pictures, checkpoints, messages, progress."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

from common import config, images
from common.distributed import Process
from common.logger import Unreadable
from common.signals import Interrupted, Requests
from tokenizer.lightning import TokenizerModule
from tokenizer.validation import compared


class Reconstructions(Callback):
    """Writes validation images, their reconstructions with EMA weights, and the differences.

    The three stand below each other; differences are absolute, three times as bright.

    Args:
        folder: where the pictures go, one a validation.
        count: images in a picture.
    """

    def __init__(self, folder: Path, count: int = 8) -> None:
        self.folder = folder
        self.count = count

    def on_validation_end(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        dataset = trainer.datamodule.datasets["validation"]
        count = min(self.count, len(dataset))
        evenly = [k * len(dataset) // count for k in range(count)]  # some of each class
        real = torch.stack([dataset[i][0] for i in evenly])
        with torch.inference_mode():
            tokenizer = module.ema.model
            posterior = tokenizer.encode(images.to_float(real.to(module.device)))
            fake = images.to_uint8(tokenizer.decode(posterior.mode())).cpu()
        path = self.folder / f"step_{module.step:08d}.png"
        images.save_grid(path, compared(real, fake), columns=count)


class Checkpoints(Callback):
    """Writes `last.ckpt` between two updates: when a signal asks for it, and every so often.

    SIGUSR1 goes on after it, SIGTERM leaves the training by `Interrupted`. What is written during
    the validation of an epoch goes on with the next one.

    Args:
        path: of the checkpoint.
        process: this process.
        every: updates between two checkpoints; 0 for none but those asked for.
    """

    def __init__(self, path: Path, process: Process, every: int = 0) -> None:
        self.path, self.process, self.every = path, process, every
        self.requests = Requests(process)
        self.progress: dict[str, Any] = {}  # Lightning's, after the last update

    def on_train_start(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        self.requests.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, module: TokenizerModule, *_: Any) -> None:
        if not module.between_updates:
            return
        epochs = trainer.fit_loop.epoch_progress
        for counts in (epochs.total, epochs.current):
            # Lightning forgets this in the epoch after a resume from the last batch of another
            counts.ready = counts.started = counts.processed + 1
        self.progress = copy.deepcopy(trainer.fit_loop.state_dict())
        self._attend(trainer, module, due=self.every > 0 and module.step % self.every == 0)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: TokenizerModule, _: Any, __: Any, index: int, *___: Any
    ) -> None:
        data = trainer.datamodule
        everywhere = len(data.datasets["validation"]) // self.process.world  # some have one more
        shared = index * data.batch_size < everywhere
        if shared and module.between_updates and not trainer.sanity_checking:
            self._attend(trainer, module)

    def _attend(self, trainer: pl.Trainer, module: TokenizerModule, due: bool = False) -> None:
        save, leave = self.requests.agreed()
        if save or due:
            trainer.save_checkpoint(self.path)
        if save:
            trainer.print(f"\ncheckpoint after {module.step} updates: {self.path}")
        if leave:
            raise Interrupted

    def on_save_checkpoint(self, trainer: pl.Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        if self.progress:
            checkpoint["loops"]["fit_loop"] = self.progress

    def on_exception(self, *_: Any) -> None:
        self.requests.__exit__()

    def on_train_end(self, *_: Any) -> None:
        self.requests.__exit__()


class UnreadablePictures(Callback):
    """Names pictures that could not be read, after the epochs in which there were more."""

    def on_fit_start(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        self.watched = [
            Unreadable(dataset, f"data.params.{name}", module.device)
            for name, dataset in trainer.datamodule.datasets.items()
        ]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        for message in [watched.news() for watched in self.watched]:
            if message:
                trainer.print(f"\n{message}")


class SavedConfig(Callback):
    """Writes the configuration when training starts: one that cannot start replaces no other."""

    def __init__(self, settings: DictConfig, path: Path) -> None:
        self.settings, self.path = settings, path

    def on_train_start(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        if trainer.is_global_zero:
            config.save(self.settings, self.path)


class Progress(TQDMProgressBar):
    """One line; in a file, where every change is a new one, few of them."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 100)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin where the epoch is: Lightning leaves this out after a resume in its middle."""
        super().on_train_start(trainer, module)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        bar = self.train_progress_bar
        bar.reset(int(self.total_train_batches))
        bar.initial = bar.n = done
        bar.set_description(f"Epoch {trainer.current_epoch}")

    def get_metrics(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return metrics
