"""Training of the tokenizer: from the settings of a run to checkpoints and a record of results."""

import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.strategies import DDPStrategy

from common import checkpoint, config, provenance
from common.config import Natural, limits, setting
from common.data.loader import DataModule
from common.distributed import Process
from common.errors import UserError
from common.io import write_json
from common.signals import PreemptionHandler
from tokenizer.callbacks import RunFolder
from tokenizer.checkpoints import read
from tokenizer.evaluate import evaluate, rescale
from tokenizer.lightning import TokenizerModule

# What Lightning says of this training, and its user can neither change nor need know.
NOISE = (
    ".*isinstance.treespec, LeafSpec.* is deprecated",
    r".*Found \d+ module\(s\) in eval mode",  # the EMA copy
    ".*does not have many workers",
    r".*number of training batches \(\d+\) is smaller than the logging interval",
)
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")


@dataclass(frozen=True)
class TrainerConfig:
    """Arguments of Lightning's trainer that have a meaning here (`lightning.trainer`)."""

    max_epochs: int = setting(1000, "epochs; -1: no limit", min=-1)
    max_steps: int = setting(-1, "updates; -1: no limit", min=-1)
    accumulate_grad_batches: int = setting(1, "batches of an update", min=1)
    check_val_every_n_epoch: int = setting(1, "epochs between two validations", min=1)
    log_every_n_steps: int = setting(50, "updates between two rows of metrics; 0: none", min=0)
    precision: str = setting("32-true", "of convolutions and products", choices=PRECISIONS)
    benchmark: bool | None = setting(None, "let cuDNN measure which kernels are fastest")


@dataclass(frozen=True)
class LightningConfig:
    """How a run goes (`lightning`)."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint_every: Natural = 0  # updates between two checkpoints; 0: one after each epoch
    checkpoint_keep_all: bool = False  # keep the checkpoint of every epoch


@dataclass(frozen=True)
class ModelConfig:
    """The module and its base learning rate (`model`)."""

    params: dict[str, Any]
    target: str = "tokenizer.lightning.TokenizerModule"
    base_learning_rate: Annotated[float, limits(min=0)] = 1.92e-4


@dataclass(frozen=True)
class Settings:
    """What a YAML file of stage one says."""

    model: ModelConfig
    data: dict[str, Any]
    lightning: LightningConfig = field(default_factory=LightningConfig)
    seed: Annotated[int, limits(min=-(2**63), below=2**64)] = 0  # as torch takes them


class AveragedGradients(DDPStrategy):
    """Many processes without the DDP wrapper: an optimizer leaves the other's parameters without a
    gradient, which the wrapper would search for; the module averages what it has computed."""

    def configure_ddp(self) -> None:
        pass


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints written whole or not at all, and read without running code from the file."""

    def save_checkpoint(self, content: dict[str, Any], path: Any, **_: Any) -> None:
        checkpoint.save(path, content)

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        content = read(path)
        needed = {"state_dict", "optimizer_states", "loops", "callbacks", "updates"}
        if absent := needed - content.keys():
            expected = "expected a checkpoint of a training (ckpt_path takes others)"
            raise UserError(f"{path}: has no {', '.join(sorted(absent))}; {expected}")
        return content


def train(
    settings: Settings,
    folder: Path,
    process: Process,
    resume: Path | None = None,
    gpus: Sequence[int] | None = None,
    weights_dir: str | None = None,
    fit: bool = True,
) -> None:
    """Train a tokenizer. After a signal, the checkpoint is written before Preempted is raised.

    Args:
        folder: for checkpoints/, configs/, images/, logs/ and results.json.
        resume: a checkpoint to go on from.
        gpus: numbers of a machine's GPUs, if not the first ones.
        weights_dir: folder of the pretrained networks.
        fit: train; otherwise only build everything, which finds mistakes in the settings.
    """
    with PreemptionHandler(process) as signals:
        torch.manual_seed(settings.seed)
        data: DataModule = config.instantiate(settings.data, "data", seed=settings.seed)
        data.setup("fit")
        options, batch = settings.lightning.trainer, data.batch_size * process.world
        module = build_module(settings, weights_dir, resume)
        for name, dataset in data.datasets.items():
            height, width = dataset[0][0].shape[1:]
            module.check_size(height, width, f"data.params.{name}: image")
        # an epoch takes the batches that make whole updates
        together = options.accumulate_grad_batches
        batches = len(data.datasets["train"]) // batch // together * together
        run = RunFolder(folder, settings, process, signals)
        trainer = build_trainer(run, gpus, batches)
        if not fit:
            return
        if process.is_main:
            print(f"{'resuming' if resume else 'training'} in {folder}", flush=True)
        where, began = provenance.describe(), time.monotonic()
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    if not run.last.exists():
        expected = "expected max_epochs above 0, accumulate_grad_batches of what an epoch has"
        raise UserError(f"no update was made; {expected}")
    results = {"updates": module.step, "seconds": time.monotonic() - began}
    results |= _measure(run, data)
    if process.is_main:
        record = {"results": results, "settings": asdict(settings), "environment": where}
        write_json(folder / "results.json", record | {"processes": process.world})


def build_module(
    settings: Settings, weights_dir: str | None = None, resume: Path | None = None
) -> TokenizerModule:
    """The module that the settings describe; a resumed one gets its weights later."""
    params = dict(settings.model.params)
    if resume is not None:
        params["ckpt_path"] = ""  # the file it once started from may be gone
    return config.instantiate(
        {"target": settings.model.target, "params": params},
        "model",
        learning_rate=settings.model.base_learning_rate,
        seed=settings.seed,
        accumulate=settings.lightning.trainer.accumulate_grad_batches,
        weights_dir=weights_dir,
    )


def build_trainer(run: RunFolder, gpus: Sequence[int] | None, batches: int) -> pl.Trainer:
    """Lightning's trainer of a run, of which an epoch has so many batches."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    options, process = run.settings.lightning.trainer, run.process
    on_gpu = process.device.type == "cuda"
    devices: Any = list(gpus) if on_gpu and gpus else process.local_world
    return pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[process.device.index] if on_gpu and process.world == 1 else devices,
        num_nodes=process.world // process.local_world,
        strategy=AveragedGradients() if process.world > 1 else "auto",
        use_distributed_sampler=False,
        plugins=[AtomicCheckpoints()],
        logger=False,  # the callback's part, and so are checkpoints
        callbacks=[run, TQDMProgressBar(refresh_rate=1 if sys.stdout.isatty() else 100)],
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=options.max_epochs,
        limit_train_batches=batches,
        log_every_n_steps=options.log_every_n_steps,
        precision=options.precision,  # type: ignore[arg-type]
        benchmark=options.benchmark,
    )


def _measure(run: RunFolder, data: DataModule) -> dict[str, Any]:
    """The scale of the checkpoints' tokens, and the fidelity of the best one (or the last)."""
    best, train = run.checkpoint("best"), data.datasets["train"]
    name, tokenizer = "last", rescale(run.last, train, run.process, **run.loading)
    if best.exists():
        name, tokenizer = "best", rescale(best, train, run.process, **run.loading)
    results: dict[str, Any] = {"checkpoint": name, "token_scale": float(tokenizer.token_scale)}
    for part in ("validation", "test"):
        if dataset := data.datasets.get(part):
            means = evaluate(tokenizer, dataset, run.process, run.lpips, **run.loading).means
            results[part] = {"images": len(dataset), **means}
            if run.process.is_main:
                print(f"{part}: " + ", ".join(f"{k} {v:.4g}" for k, v in results[part].items()))
    return results
