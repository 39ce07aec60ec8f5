"""What Lightning needs to train the tokenizer on one process or many."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from common import checkpoint, config
from common.distributed import Process
from common.errors import UserError
from tokenizer.callbacks import Progress, Reconstructions, UnreadablePictures

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
    "overfit_batches": "lightning.trainer.limit_train_batches",
    "fast_dev_run": "lightning.trainer.limit_train_batches and max_epochs=1",
    "barebones": "scripts/benchmark_tokenizer.py",
}
ALWAYS = ("enable_checkpointing", "enable_progress_bar")  # the run's own, not to be turned off
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")


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
        if options.get(key):
            raise UserError(f"lightning.trainer.{key}: has no effect here; expected {instead}")
    for key in ALWAYS:
        if options.get(key) not in (None, True):
            raise UserError(f"lightning.trainer.{key}: found {options[key]!r}, expected true")
    if str(options.get("precision", "32")) not in PRECISIONS:
        raise UserError(
            f"lightning.trainer.precision: found {options['precision']!r}, expected bf16-mixed or "
            "32-true: half precision needs a scaled loss, which two optimizers by hand do not have"
        )
    if process.world > 1 and isinstance(options.get("limit_val_batches", 1), float):
        raise UserError(
            f"lightning.trainer.limit_val_batches: found {options['limit_val_batches']}, expected "
            "a whole number of batches, which is the same for all processes"
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
        "logger": [events, CSVLogger(folder, "csv", flush_logs_every_n_steps=1), *loggers],
        "callbacks": callbacks,
    }
    params = {"enable_model_summary": False, **options}
    try:
        return config.construct(pl.Trainer, params, "lightning.trainer", **fixed)
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"lightning.trainer: {error}") from None
