"""The run of a training: where it stands, what it writes, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from common import checkpoint, distributed
from common.errors import UserError
from common.logger import Logs, Unreadable, progress
from common.signals import Interrupted, Requests
from generator.columns import ColumnLosses, save_picture
from generator.learner import Learner
from generator.model import Generator
from generator.schedule import Schedule

LAST = "checkpoint-last.pth"
STATE = {
    *("model", "model_ema", "optimizer", "skipped", "skipped_in_a_row"),
    *("epoch", "epoch_images", "step", "training", "data", "generator"),
}


class Trainer:
    """A learner and its data, brought on update by update.

    Args:
        learner: see `Learner`; its settings say what is due when.
        loader: of `generator.data.training_batches`.
        folder: where checkpoints and pictures go.
        header: plain values that every checkpoint carries beside the state; a checkpoint with
            others is refused.
        logs: where logs go; `folder` if not given.
        evaluate: loss by column, measured every `eval_freq` epochs.
        preview: draws samples into a file, every `sample_freq` epochs.
    """

    def __init__(
        self,
        learner: Learner,
        loader: DataLoader,
        folder: Path,
        header: dict[str, Any],
        logs: Path | None = None,
        evaluate: Callable[[Generator], dict[int, float]] | None = None,
        preview: Callable[[Generator, Path], None] | None = None,
    ) -> None:
        self.learner = learner
        self.config, self.process = learner.config, learner.process
        self.loader = loader
        self.folder = folder
        self.header = header
        self.log_folder = logs or folder
        self.evaluate = evaluate
        self.preview = preview
        config, world = self.config, self.process.world
        self.schedule = Schedule(
            config.rate(world),
            config.epochs,
            config.warmup_epochs,
            config.min_lr,
            config.lr_schedule,
        )
        self.updates_an_epoch = len(loader) // config.accumulate
        self.images_an_update = config.batch_size * config.accumulate * world
        self.unreadable = Unreadable(loader.dataset, "images", self.process.device)
        self.epoch = 0
        self.epoch_updates = 0  # of this epoch that are done
        self.step = 0
        self.logs: Logs | None = None
        self.bar: tqdm

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.epochs or 0 < self.config.max_steps <= self.step

    def run(self) -> None:
        """Train from where the state stands to the end.

        Raises:
            Interrupted: SIGTERM came; the checkpoint has been written.
            UserError: the loss is not finite any more.
        """
        if self.finished:
            return
        main = self.process.is_main
        total = self.config.epochs * self.updates_an_epoch
        total = min(total, self.config.max_steps or total)
        self.bar = progress(total, "generator", "step", main, min(self.step, total))
        self.logs = Logs(self.log_folder, self.step) if main else None
        try:
            with Requests(self.process) as requests:
                while not self.finished:
                    self._epoch(requests)
            if self.epoch_updates:  # otherwise written at the end of the epoch
                self.save(LAST)
            self._draw_curves()
        finally:
            self.bar.close()
            if self.logs:
                self.logs.close()

    def _epoch(self, requests: Requests) -> None:
        """The rest of an epoch, or less if training ends in it."""
        for batches in self._batches():
            rate = self.schedule.rate(self.epoch + self.epoch_updates / self.updates_an_epoch)
            losses, norm = self.learner.update(batches, self.step, rate)
            self.step += 1
            self.epoch_updates += 1
            ended = self.epoch_updates == self.updates_an_epoch
            self.bar.update()
            told = ended or self.finished or self.step % self.config.log_freq == 0
            if told:
                self._tell(losses, norm, rate)
            if ended:
                self.epoch, self.epoch_updates = self.epoch + 1, 0
                self._between_epochs()
            if self.finished:
                return
            self._attend(requests, told)

    def _batches(self) -> Iterator[list[Any]]:
        """The batches of each update that is left in this epoch."""
        self.loader.sampler.resume(self.epoch, self.epoch_updates)
        batches = iter(self.loader)
        for _ in range(self.updates_an_epoch - self.epoch_updates):
            yield list(islice(batches, self.config.accumulate))

    def _tell(self, losses: ColumnLosses, norm: Tensor, rate: float) -> None:
        """Read and log how an update went; the one place that waits for the device."""
        self.learner.updates.check(self.step)
        means = losses.means()
        trained = [means[i] for i in self.learner.trained if i in means]
        loss = sum(trained) / len(trained)
        self.bar.set_postfix(loss=f"{loss:.4f}", epoch=self.epoch + 1, refresh=False)
        self._log(
            {
                **{f"columns/loss_{i:02d}": value for i, value in means.items()},
                "train/loss": loss,
                "train/grad_norm": norm.item(),
                "train/lr": rate,
                "train/skipped": self.learner.updates.skipped.item(),
            }
        )

    def _log(self, values: dict[str, float]) -> None:
        if self.logs:
            self.logs.scalars(self.step, values)

    def _draw_curves(self) -> None:
        if self.logs:
            save_picture(self.log_folder / "metrics.csv", self.folder / "columns.png")

    def _between_epochs(self) -> None:
        """What is due after an epoch."""
        config, average = self.config, self.learner.updates.ema.model

        def due(every: int) -> bool:
            return every > 0 and (self.finished or self.epoch % every == 0)

        if due(config.save_last_freq):
            self.save(LAST)
        if config.save_freq and self.epoch % config.save_freq == 0:
            self.save(f"checkpoint-ckpt-{self.epoch}.pth")
        if due(config.eval_freq):
            means = self.evaluate(average)
            values = {f"eval_columns/loss_{i:02d}": value for i, value in means.items()}
            self._log({**values, "eval/loss": sum(means.values()) / len(means)})
            self._draw_curves()
        if due(config.sample_freq) and self.process.is_main:
            self.preview(average, self.folder / "samples" / f"epoch_{self.epoch:05d}.png")
        message = self.unreadable.news()
        if message and self.process.is_main:
            self.bar.write(message)

    def _attend(self, requests: Requests, told: bool) -> None:
        """Write the checkpoint that is due after an update, or asked for by a signal.

        Several GPUs agree on signals where they wait for each other anyway, when the log is told.
        """
        save = leave = False
        if told or self.process.world == 1 or self.process.device.type == "cpu":
            save, leave = requests.agreed()
        every = self.config.save_steps
        if save or (every and self.step % every == 0):
            self.save(LAST)
        if save and self.process.is_main:
            self.bar.write(f"checkpoint after {self.step} updates: {self.folder / LAST}")
        if leave:
            raise Interrupted

    def save(self, name: str) -> None:
        """Write the whole state to `folder / name`."""
        self.learner.updates.check(self.step)
        if self.process.is_main:
            state = {
                **self.learner.updates.state(),
                "epoch": self.epoch,
                "epoch_images": self.epoch_updates * self.images_an_update,
                "step": self.step,
                "training": asdict(self.config),
                "data": self._data(),
                **self.header,
            }
            checkpoint.save(self.folder / name, state)
        distributed.barrier()

    def load(self, state: dict[str, Any], source: object) -> None:
        """Go on from the state of a checkpoint that `save` wrote.

        Raises:
            UserError: it is of another model, tokenizer or data, or stands where updates of this
                size cannot go on.
        """
        for key, value in self.header.items():
            if state.get(key) != value:
                raise UserError(f"{source}: {_difference(key, state.get(key), value)}")
        done = state["epoch_images"]
        if done and state["data"] != self._data():
            difference = _difference("data", state["data"], self._data())
            raise UserError(
                f"{source}: {difference}; this may change between two epochs, but the checkpoint "
                "stands within one"
            )
        if done % self.images_an_update:
            raise UserError(
                f"--batch_size: found updates of {self.images_an_update} images, but {source} "
                f"stands after {done} images of an epoch; expected a divisor of these, or a "
                "checkpoint from the end of an epoch"
            )
        self.learner.updates.load(state, source, state["step"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.epoch_updates = done // self.images_an_update
        if self.epoch_updates >= self.updates_an_epoch:  # larger updates leave out more at the end
            self.epoch, self.epoch_updates = self.epoch + 1, 0

    def _data(self) -> dict[str, int]:
        return {"images": len(self.loader.dataset), "columns": self.learner.columns}


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint of training.

    Raises:
        UserError: it is none.
    """
    state = checkpoint.load(path)
    absent = STATE - state.keys()
    if absent:
        raise UserError(
            f"{path}: has no {', '.join(sorted(absent))}; expected a checkpoint that training wrote"
        )
    return state


def _difference(key: str, found: Any, expected: Any) -> str:
    """What differs between the value of a header here and in a checkpoint."""
    if isinstance(found, list) and isinstance(expected, list):
        found, expected = ({"number": len(v), **dict(enumerate(v))} for v in (found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        key, found, expected = next(
            (f"{key} {k}", found.get(k), expected.get(k))
            for k in expected | found
            if found.get(k) != expected.get(k)
        )
    return f"was trained with {key} {found!r}, found {expected!r} now"
