"""What Lightning needs to train the tokenizer on one process or many."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy

from common import checkpoint, config, images
from common.distributed import Process
from common.errors import UserError
from common.logs import Unreadable
from common.signals import Interrupted, Requests
from tokenizer.lightning import TokenizerModule

# What Lightning says of this training, and its user can neither change nor need know.
NOISE = (
    ".*isinstance.treespec, LeafSpec.* is deprecated",
    r".*Found \d+ module\(s\) in eval mode",  # the EMA copy
    ".*does not have many workers",
    r".*number of training batches \(\d+\) is smaller than the logging interval",
    ".*Checkpoint directory .* exists and is not empty",
    ".*Total length of `list` across ranks is zero",  # no validation set
    ".*Experiment logs directory .* exists and is not empty",
)
# What automatic optimisation would do, and the module does by hand.
BY_HAND = {
    "gradient_clip_val": "model.params.grad_clip",
    "gradient_clip_algorithm": "model.params.grad_clip",
}
DIFFERENCE_GAIN = 3  # of the differences that are shown


def quieten() -> None:
    """Silence Lightning where it does not speak to the user of this program."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


class AveragedGradients(DDPStrategy):
    """Many processes without the DDP wrapper.

    Each of the two optimizers leaves the other's parameters without a gradient, which the wrapper
    would have to search for in every step; the module averages what it has computed instead.
    """

    def configure_ddp(self) -> None:
        pass


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints written whole or not at all, and read without running code from the file."""

    def save_checkpoint(
        self, state: dict[str, Any], path: str, storage_options: Any = None
    ) -> None:
        checkpoint.save(path, state)

    def load_checkpoint(self, path: str, *_: Any, **__: Any) -> dict[str, Any]:
        state = checkpoint.load(path)
        absent = {"state_dict", "optimizer_states", "loops", "tokenizer"} - state.keys()
        if absent:
            raise UserError(
                f"{path}: has no {', '.join(sorted(absent))}; expected a checkpoint of "
                "scripts/train_tokenizer.py"
            )
        return state


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
        real = torch.stack([dataset[i][0] for i in range(count)])
        with torch.inference_mode():
            tokenizer = module.ema.model
            posterior = tokenizer.encode(images.to_float(real.to(module.device)))
            fake = images.to_uint8(tokenizer.decode(posterior.mode())).cpu()
        difference = (real.int() - fake.int()).abs().mul(DIFFERENCE_GAIN).clamp(max=255)
        rows = torch.cat([real, fake, difference.to(torch.uint8)])
        images.save_grid(self.folder / f"step_{module.step:08d}.png", rows, columns=count)


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
        self.progress: dict[str, Any] = {}  # Lightning's, after the last update of an epoch

    def on_train_start(self, trainer: pl.Trainer, module: TokenizerModule) -> None:
        self.requests.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, module: TokenizerModule, *_: Any) -> None:
        if module.between_updates:
            due = self.every > 0 and module.step % self.every == 0
            self._attend(trainer, module, due)
        if trainer.is_last_batch:
            self.progress = copy.deepcopy(trainer.fit_loop.state_dict())

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: TokenizerModule, _: Any, __: Any, index: int, *___: Any
    ) -> None:
        data = trainer.datamodule
        everywhere = len(data.datasets["validation"]) // self.process.world  # some have one more
        if not trainer.sanity_checking and index * data.batch_size < everywhere:
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
        if trainer.validating:
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

    def get_metrics(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return metrics


def wandb_logger(project: str, folder: Path) -> Logger:
    """A logger for Weights & Biases, whose package is an option.

    Raises:
        UserError: it is not installed.
    """
    try:
        return WandbLogger(project=project, name=folder.name, save_dir=folder)
    except ModuleNotFoundError:
        raise UserError(
            "--wandb: the package wandb is not installed; expected `pip install wandb`"
        ) from None


def build_trainer(
    folder: Path,
    options: Mapping[str, Any],
    process: Process,
    validates: bool,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    gpus: Sequence[int] | None = None,
) -> pl.Trainer:
    """A trainer that writes to `folder/{checkpoints,images,logs,csv}`.

    Args:
        folder: of the run.
        options: arguments of `pytorch_lightning.Trainer` (`lightning.trainer` in the YAML file).
        process: this process; its device and the number of processes decide accelerator,
            devices and strategy.
        validates: whether there is a validation set to choose the best checkpoint by.
        callbacks, loggers: further ones.
        gpus: numbers of the GPUs that the processes of a machine take, if not the first ones.

    Raises:
        UserError: an option that the trainer does not know, or that has no effect here.
    """
    for key, instead in BY_HAND.items():
        if options.get(key) is not None:
            raise UserError(f"lightning.trainer.{key}: has no effect here; expected {instead}")
    if str(options.get("precision", "")).startswith("16"):
        raise UserError(
            f"lightning.trainer.precision: found {options['precision']!r}, expected bf16-mixed or "
            "32-true: half precision needs a scaled loss, which two optimizers by hand do not have"
        )
    checkpoints = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    callbacks = [
        *callbacks,
        Reconstructions(folder / "images"),
        UnreadablePictures(),
        Progress(),
        ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **checkpoints),
    ]
    if validates:
        best = ModelCheckpoint(filename="best", monitor="val/psnr", mode="max", **checkpoints)
        callbacks.append(best)
    on_gpu = process.device.type == "cuda"
    if on_gpu and process.world == 1:
        devices: Any = [process.device.index]
    else:
        devices = list(gpus) if on_gpu and gpus else process.local_world
    events = TensorBoardLogger(folder, name="logs", version="")
    fixed = {
        "accelerator": "gpu" if on_gpu else "cpu",
        "devices": devices,
        "num_nodes": process.world // process.local_world,
        "strategy": AveragedGradients() if process.world > 1 else "auto",
        "use_distributed_sampler": False,
        "plugins": [AtomicCheckpoints()],
        "logger": [events, CSVLogger(folder, "csv"), *loggers],
        "callbacks": callbacks,
    }
    params = {"enable_model_summary": False, **options}
    node = {"target": "pytorch_lightning.Trainer", "params": params}
    try:
        return config.instantiate(node, "lightning.trainer", **fixed)
    except UserError as error:
        message = str(error).replace("lightning.trainer.params", "lightning.trainer")
        raise UserError(message) from None
