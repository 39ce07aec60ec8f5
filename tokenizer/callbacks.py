"""Callback of a run: its configuration, checkpoints, validation and messages."""

import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from common import config, images
from common.distributed import Process
from common.errors import Preempted
from common.io import replacing
from common.logger import MetricLogger, UnreadableImages
from common.signals import PreemptionHandler
from tokenizer.evaluate import available_lpips, comparison, evaluate
from tokenizer.lightning import TokenizerModule

SHOWN = 8  # validation images in a grid


class RunFolder(pl.Callback):
    """Keeps the folder of a run with these settings (`tokenizer.train.Settings`).

    After each epoch: validation with EMA weights (`logs/metrics.csv`, `images/step_*.png`), then
    `checkpoints/last.ckpt`, and a copy of it as `best.ckpt` if its PSNR is the highest. Between
    two updates: `last.ckpt` every so often, and when a signal asks for it. A validation that a
    signal cuts short is made up for after the resume, because the checkpoint says that it is due.
    """

    def __init__(
        self, folder: Path, settings: Any, process: Process, signals: PreemptionHandler
    ) -> None:
        self.folder, self.settings, self.process, self.signals = folder, settings, process, signals
        self.last = self.checkpoint("last")
        self.progress = {"epochs": 0, "due": False, "best": float("-inf"), "best_step": -1}

    def checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return dict(self.progress)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.progress = dict(state_dict)

    def on_train_start(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        self.signals.__enter__()  # over Lightning's own handler, which would leave in mid-update
        _, leave = self.signals.requested()
        if leave:
            raise Preempted(leave, "no update had been made")
        self._open(trainer, module)
        if self.progress["best_step"] == module.step and trainer.ckpt_path:
            self.copy(Path(trainer.ckpt_path), "best")  # which a kill may have prevented
        trainer.should_stop = self._enough(module)
        if self.progress["due"]:
            self._finish_epoch(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: TokenizerModule, _: Any, __: Any, ___: int
    ) -> None:
        if module.batches:  # in the middle of an update
            return
        trainer.should_stop = self._enough(module)
        if not trainer.is_last_batch:
            every = self.settings.lightning.checkpoint_every
            due = trainer.should_stop or (every > 0 and module.step % every == 0)
            self._attend(trainer, module, due)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        if not trainer.is_last_batch:  # stopped in the middle
            return
        self.progress["epochs"] += 1
        self._finish_epoch(trainer, module)
        for watched in self.unreadable:
            if message := watched.news():
                trainer.print(f"\n{message}")

    def on_fit_end(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        if self.progress["due"]:  # after a resume that had no update to make
            self._open(trainer, module)
            self._finish_epoch(trainer, module)
        self.on_exception(trainer, module, None)

    def on_exception(self, trainer: pl.Trainer, module: TokenizerModule, _: Any) -> None:
        if module.metrics is not None:
            module.metrics.close()

    def _enough(self, module: TokenizerModule) -> bool:
        return 0 <= self.settings.lightning.trainer.max_steps <= module.step

    def _open(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        """Write into the folder: not before a run has started, or it would replace another's."""
        self.lpips = module.objective.perceptual or available_lpips(module.weights_dir)
        self.unreadable = [
            UnreadableImages(dataset, f"data.params.{name}", module.device)
            for name, dataset in trainer.datamodule.datasets.items()
        ]
        if self.process.is_main:
            config.save(asdict(self.settings), self.folder / "configs" / "config.yaml")
            module.metrics = MetricLogger(self.folder / "logs", module.step)

    def _finish_epoch(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        self.progress["due"] = True
        epochs, improved = self.progress["epochs"], False
        dataset = trainer.datamodule.datasets.get("validation")
        if dataset and epochs % self.settings.lightning.trainer.check_val_every_n_epoch == 0:
            improved = self._validate(trainer, module, dataset)
        self.progress["due"] = False
        trainer.save_checkpoint(self.last)
        if improved:
            self.copy(self.last, "best")
        if self.settings.lightning.checkpoint_keep_all:
            self.copy(self.last, f"epoch_{epochs:06d}")
        self._attend(trainer, module)

    def _validate(self, trainer: pl.Trainer, module: TokenizerModule, dataset: Any) -> bool:
        """Measure and show reconstructions; whether they are better than all before."""
        tokenizer, training = module.average, module.average.training
        data, attend = trainer.datamodule, partial(self._attend, trainer, module)
        loading = {"batch_size": data.batch_size, "num_workers": data.num_workers}
        given = (tokenizer.eval(), dataset, self.process, self.lpips)
        found = evaluate(*given, attend=attend, **loading)
        values = dict(found.means)
        if found.token_scale is not None:  # neither collapsed nor diverged
            values["token_scale"] = found.token_scale
            for each in (module.tokenizer, tokenizer):  # whose checkpoint stage two reads
                each.token_scale.fill_(found.token_scale)
        module.record(values, "val")
        if self.process.is_main:
            evenly = [k * len(dataset) // SHOWN for k in range(SHOWN)]  # some of each class
            shown = comparison(tokenizer, dataset, list(dict.fromkeys(evenly)))
            path = self.folder / "images" / f"step_{module.step:08d}.png"
            images.save_grid(path, shown, columns=len(shown) // 3)
        tokenizer.train(training)
        improved = values["psnr"] > self.progress["best"]
        if improved:
            self.progress |= {"best": values["psnr"], "best_step": module.step}
        return improved

    def _attend(self, trainer: pl.Trainer, module: TokenizerModule, due: bool = False) -> None:
        """Write a checkpoint if one is due or asked for, and leave if a signal says so."""
        save, leave = self.signals.requested()
        if save or due:
            trainer.save_checkpoint(self.last)
        if leave:
            raise Preempted(leave, f"`-r {self.folder}` goes on from {self.last}")
        if save:
            trainer.print(f"\ncheckpoint after {module.step} updates: {self.last}")

    def copy(self, source: Path, name: str) -> None:
        target = self.checkpoint(name)
        if self.process.is_main and source != target:
            with source.open("rb") as old, replacing(target) as new:
                shutil.copyfileobj(old, new)
