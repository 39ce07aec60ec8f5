"""Callback of a run: its configuration, checkpoints, validation and messages."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import Dataset

from common import config
from common.distributed import Process
from common.errors import Preempted
from common.logger import MetricLogger
from common.signals import PreemptionHandler
from tokenizer.evaluate import available_lpips, evaluate, save_comparison
from tokenizer.lightning import TokenizerModule


class RunFolder(pl.Callback):
    """Keeps the folder of a run with these settings (`tokenizer.train.Settings`).

    After each epoch: validation with EMA weights (`logs/metrics.csv`, `images/step_*.png`), then
    `checkpoints/best.ckpt` if its PSNR is the highest, and `last.ckpt`; a run that is killed before
    that does all of it again. Between two updates: `last.ckpt` every so often, and when a signal
    asks for it; a validation is finished first.
    """

    def __init__(
        self, folder: Path, settings: Any, process: Process, signals: PreemptionHandler
    ) -> None:
        self.folder, self.settings, self.process, self.signals = folder, settings, process, signals
        self.progress = {"epochs": 0, "best": float("-inf")}
        self.last = self.checkpoint("last")

    def checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return dict(self.progress)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.progress = dict(state_dict)

    def setup(self, trainer: pl.Trainer, module: TokenizerModule, stage: str) -> None:
        self.trainer, self.module, data = trainer, module, trainer.datamodule
        self.validation = data.datasets.get("validation")
        self.loading = {"batch_size": data.batch_size, "num_workers": data.num_workers}
        self.lpips = module.objective.perceptual or available_lpips(module.weights_dir)

    def on_train_start(self, *_: Any) -> None:
        self.signals.__enter__()  # over Lightning's own handler, which would leave in mid-update
        if leave := self.signals.requested()[1]:
            raise Preempted(leave, "no update had been made")
        if self.process.is_main:  # only now, or a mistake could replace another run's files
            config.save(asdict(self.settings), self.folder / "configs" / "config.yaml")
            self.module.metrics = MetricLogger(self.folder / "logs", self.module.step)
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
        if not self.trainer.is_last_batch:  # stopped in the middle
            return
        self.progress["epochs"] += 1
        epochs, options = self.progress["epochs"], self.settings.lightning
        names = [f"epoch_{epochs:06d}"] if options.checkpoint_keep_all else []
        due = epochs % options.trainer.check_val_every_n_epoch == 0
        if due and self.validation is not None and self._validate(self.validation):
            names.append("best")
        for name in (*names, "last"):
            self.trainer.save_checkpoint(self.checkpoint(name))
        self._attend()

    def on_fit_end(self, _: pl.Trainer, module: TokenizerModule, *__: Any) -> None:
        if module.metrics is not None:
            module.metrics.close()

    on_exception = on_fit_end

    def _enough(self) -> bool:
        return 0 <= self.settings.lightning.trainer.max_steps <= self.module.step

    def _validate(self, dataset: Dataset) -> bool:
        """Measure and show reconstructions; whether they are better than all before."""
        module, tokenizer = self.module, self.module.average.eval()
        found = evaluate(tokenizer, dataset, self.process, self.lpips, **self.loading)
        values = dict(found.means)
        if found.token_scale is not None:  # neither collapsed nor diverged
            values["token_scale"] = found.token_scale
            for each in (module.tokenizer, tokenizer):  # whose checkpoint stage two reads
                each.token_scale.fill_(found.token_scale)
        module.record(values, "val")
        if self.process.is_main:
            path = self.folder / "images" / f"step_{module.step:08d}.png"
            save_comparison(path, tokenizer, dataset)
        module.tokenizer.train()
        improved = values["psnr"] > self.progress["best"]
        if improved:
            self.progress["best"] = values["psnr"]
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
