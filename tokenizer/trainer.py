"""What Lightning needs to train the tokenizer on one process or many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy

from common import checkpoint, config, images
from common.distributed import Process
from tokenizer.lightning import TokenizerModule


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
        return checkpoint.load(path)


class Reconstructions(Callback):
    """Writes validation images above their reconstructions, with EMA weights.

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
        path = self.folder / f"step_{module.step:08d}.png"
        images.save_grid(path, torch.cat([real, fake]), columns=count)


def build_trainer(
    folder: Path, options: Mapping[str, Any], process: Process, validates: bool
) -> pl.Trainer:
    """A trainer that writes to `folder/{checkpoints,images,logs}`.

    Args:
        folder: of the run.
        options: arguments of `pytorch_lightning.Trainer` (`lightning.trainer` in the YAML file).
        process: this process; its device and the number of processes decide accelerator,
            devices and strategy.
        validates: whether there is a validation set to choose the best checkpoint by.
    """
    checkpoints = ModelCheckpoint(
        folder / "checkpoints",
        filename="best" if validates else "{epoch:04d}",
        monitor="val/psnr" if validates else None,
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    single_gpu = process.world == 1 and process.device.type == "cuda"
    fixed = {
        "accelerator": "gpu" if process.device.type == "cuda" else "cpu",
        "devices": [process.device.index] if single_gpu else process.local_world,
        "num_nodes": process.world // process.local_world,
        "strategy": AveragedGradients() if process.world > 1 else "auto",
        "use_distributed_sampler": False,
        "plugins": [AtomicCheckpoints()],
        "logger": [TensorBoardLogger(folder, name="logs", version=""), CSVLogger(folder, "csv")],
        "callbacks": [checkpoints, Reconstructions(folder / "images"), TQDMProgressBar()],
    }
    node = {"target": "pytorch_lightning.Trainer", "params": options}
    return config.instantiate(node, "lightning.trainer", **fixed)
