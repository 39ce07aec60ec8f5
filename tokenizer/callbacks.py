"""Callback of a run: its configuration, checkpoints, validation and messages."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from common import config
from common.distributed import Process
from common.errors import Preempted
from common.io import replacing
from common.logger import MetricLogger
from common.signals import PreemptionHandler
from tokenizer.evaluate import available_lpips, evaluate, save_comparison
from tokenizer.lightning import TokenizerModule


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

    def setup(self, trainer: pl.Trainer, module: TokenizerModule, stage: str) -> None:
        self.trainer, self.module, self.data = trainer, module, trainer.datamodule

    def on_train_start(self, *_: Any) -> None:
        self.signals.__enter__()  # over Lightning's own handler, which would leave in mid-update
        if leave := self.signals.requested()[1]:
            raise Preempted(leave, "no update had been made")
        self._open()
        if self.progress["best_step"] == self.module.step and self.trainer.ckpt_path:
            self.copy(Path(self.trainer.ckpt_path), "best")  # which a kill may have prevented
        if self.progress["due"]:
            self._finish_epoch()
        self.trainer.should_stop = self._enough()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.module.batches:  # in the middle of an update
            return
        self.trainer.should_stop = self._enough()
        if self.trainer.is_last_batch:
            return
        step, every = self.module.step, self.settings.lightning.checkpoint_every
        due = self._enough() or (every > 0 and step % every == 0)
        # several GPUs agree on signals where they wait for each other anyway: for a row of the log
        logged = step % (self.trainer.log_every_n_steps or 50) == 0
        if due or logged or self.process.world == 1 or self.process.device.type == "cpu":
            self._attend(due)

    def on_train_epoch_end(self, *_: Any) -> None:
        if self.trainer.is_last_batch:  # otherwise stopped in the middle
            self.progress["epochs"] += 1
            self._finish_epoch()

    def on_fit_end(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        if self.progress["due"]:  # after a resume that had no update to make
            module.to(self.process.device)  # which Lightning has taken it from
            self._open()
            self._finish_epoch()
        self.on_exception(trainer, module)

    def on_exception(self, _: pl.Trainer, module: TokenizerModule, *__: Any) -> None:
        if module.metrics is not None:
            module.metrics.close()

    def _enough(self) -> bool:
        return 0 <= self.settings.lightning.trainer.max_steps <= self.module.step

    def _open(self) -> None:
        """Write into the folder: not before a run has started, or it would replace another's."""
        self.lpips = self.module.objective.perceptual or available_lpips(self.module.weights_dir)
        if self.process.is_main:
            config.save(asdict(self.settings), self.folder / "configs" / "config.yaml")
            self.module.metrics = MetricLogger(self.folder / "logs", self.module.step)

    def _finish_epoch(self) -> None:
        self.progress["due"] = True
        epochs, every = self.progress["epochs"], self.settings.lightning.trainer
        validates = "validation" in self.data.datasets
        improved = validates and epochs % every.check_val_every_n_epoch == 0 and self._validate()
        self.progress["due"] = False
        self.trainer.save_checkpoint(self.last)
        if improved:
            self.copy(self.last, "best")
        if self.settings.lightning.checkpoint_keep_all:
            self.copy(self.last, f"epoch_{epochs:06d}")
        self._attend()

    def _validate(self) -> bool:
        """Measure and show reconstructions; whether they are better than all before."""
        module, dataset = self.module, self.data.datasets["validation"]
        tokenizer, training = module.average, module.average.training
        loading: dict[str, Any] = {
            "batch_size": self.data.batch_size,
            "num_workers": self.data.num_workers,
        }
        loading |= {"lpips": self.lpips, "attend": self._attend}
        found = evaluate(tokenizer.eval(), dataset, self.process, **loading)
        values = dict(found.means)
        if found.token_scale is not None:  # neither collapsed nor diverged
            values["token_scale"] = found.token_scale
            for each in (module.tokenizer, tokenizer):  # whose checkpoint stage two reads
                each.token_scale.fill_(found.token_scale)
        module.record(values, "val")
        if self.process.is_main:
            path = self.folder / "images" / f"step_{module.step:08d}.png"
            save_comparison(path, tokenizer, dataset)
        tokenizer.train(training)
        improved = values["psnr"] > self.progress["best"]
        if improved:
            self.progress |= {"best": values["psnr"], "best_step": module.step}
        return improved

    def _attend(self, due: bool = False) -> None:
        """Write a checkpoint if one is due or asked for, and leave if a signal says so."""
        save, leave = self.signals.requested()
        if save or due:
            self.trainer.save_checkpoint(self.last)
        if leave:
            raise Preempted(leave, f"`-r {self.folder}` goes on from {self.last}")
        if save:
            self.trainer.print(f"\ncheckpoint after {self.module.step} updates: {self.last}")

    def copy(self, source: Path, name: str) -> None:
        target = self.checkpoint(name)
        if self.process.is_main and source != target:
            with source.open("rb") as old, replacing(target) as new:
                shutil.copyfileobj(old, new)
