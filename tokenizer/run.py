"""A run of stage one: from its settings to checkpoints and a record of what was measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from common import config, seeding
from common import provenance as environment
from common.coerce import Mismatch, coerce
from common.data.loader import DataModule
from common.distributed import Process
from common.errors import UserError
from common.records import write_json
from tokenizer.callbacks import Checkpoints, SavedConfig
from tokenizer.lightning import TokenizerModule
from tokenizer.loading import load_tokenizer
from tokenizer.scale import rescale
from tokenizer.trainer import build_trainer
from tokenizer.validation import available_lpips, measure_fidelity


@dataclass(frozen=True)
class Run:
    """What a run is, beside its settings.

    Args:
        folder: `checkpoints/`, `configs/`, `images/`, `logs/`, `csv/` and `results.json` go there.
        process: this process.
        resume: a checkpoint to go on from.
        gpus: numbers of the GPUs that the processes of a machine take, if not the first ones.
        loggers: further ones than TensorBoard's and CSV.
        weights_dir: folder of the pretrained networks.
        scale_lr: multiply the rate of a new run by the global batch size.
        test: measure fidelity on the test set at the end, if there is one.
    """

    folder: Path
    process: Process
    resume: Path | None = None
    gpus: Sequence[int] | None = None
    loggers: Sequence[Logger] = field(default=())
    weights_dir: str | None = None
    scale_lr: bool = False
    test: bool = True

    def checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.ckpt"


def train(run: Run, settings: DictConfig, fit: bool = True) -> None:
    """Train a tokenizer.

    Args:
        run: where, and from what.
        settings: see `tokenizer.settings.read`.
        fit: otherwise only build everything, which finds mistakes in the settings.

    Raises:
        UserError: a mistake in the settings.
        Interrupted: SIGTERM came; the checkpoint has been written.
    """
    seeding.seed_everything(settings.seed)
    data: DataModule = config.instantiate(settings.data, "data", seed=settings.seed)
    data.setup("fit")
    options, accumulate = trainer_options(settings)
    world = run.process.world
    if run.scale_lr and run.resume is None:  # a run's own config has the rate that it uses
        settings.model.base_learning_rate *= data.batch_size * world * accumulate
    if accumulate > 1:  # an update has all its batches in one epoch
        batches = len(data.datasets["train"]) // (data.batch_size * world)
        limit = options.setdefault("limit_train_batches", batches // accumulate * accumulate)
        if not isinstance(limit, int) or limit % accumulate or not 0 < limit <= batches:
            raise UserError(
                f"lightning.trainer.limit_train_batches: found {limit}, expected a multiple of "
                f"accumulate_grad_batches, {accumulate}, up to the {batches} batches of an epoch"
            )
    module = build_module(settings, accumulate, run.weights_dir, run.resume)
    for name, dataset in data.datasets.items():
        try:
            module.tokenizer.check_size(*dataset[0][0].shape[1:])
        except UserError as error:
            raise UserError(f"data.params.{name}: {error}") from None
    last = run.checkpoint("last")
    trainer = build_trainer(
        run.folder,
        options,
        run.process,
        validates="validation" in data.datasets,
        callbacks=[
            SavedConfig(settings, run.folder / "configs" / "config.yaml"),
            Checkpoints(last, run.process, settings.lightning.checkpoint_every),
        ],
        loggers=run.loggers,
        gpus=run.gpus,
    )
    if not fit:
        return
    if run.process.is_main:
        print(f"{'resuming' if run.resume else 'training'} in {run.folder}", flush=True)
    where = environment.describe(Path(__file__).parents[1])
    began = time.monotonic()
    trainer.fit(module, datamodule=data, ckpt_path=run.resume)
    if not last.exists():
        raise UserError(
            "no update was made; expected lightning.trainer with max_epochs and limits above 0"
        )
    results = {
        "updates": module.step,
        "timed_updates": module.step - module.first_step,  # those of this part of a resumed run
        "seconds": time.monotonic() - began,
    }
    results |= _measure(run, data)
    if run.process.is_main:
        record = {"results": results, "settings": OmegaConf.to_container(settings, resolve=True)}
        record |= {"environment": where, "processes": world}
        write_json(run.folder / "results.json", record)


def trainer_options(settings: DictConfig) -> tuple[dict[str, Any], int]:
    """The arguments of Lightning's trainer, and the batches of an update, which it does not take
    where two optimizers step by hand.

    Raises:
        UserError: the number of batches is none.
    """
    options = OmegaConf.to_container(settings.lightning.trainer, resolve=True)
    accumulate = options.pop("accumulate_grad_batches", None)
    try:
        accumulate = 1 if accumulate is None else coerce(accumulate, int)
    except Mismatch:
        accumulate = 0
    if accumulate < 1:
        raise UserError(
            "lightning.trainer.accumulate_grad_batches: found "
            f"{settings.lightning.trainer.accumulate_grad_batches!r}, expected 1 or more"
        )
    return options, accumulate


def build_module(
    settings: DictConfig, accumulate: int, weights_dir: str | None, resume: Path | None = None
) -> TokenizerModule:
    """The module that the settings describe; to go on, it starts from the checkpoint `resume`."""
    model = copy.deepcopy(settings.model)
    rate = model.pop("base_learning_rate")
    if resume is not None and (model.get("params") or {}).get("ckpt_path"):
        model.params.ckpt_path = str(resume)  # the file it once started from may be gone
    return config.instantiate(
        model,
        "model",
        learning_rate=rate,
        seed=settings.seed,
        accumulate=accumulate,
        weights_dir=weights_dir,
    )


def _measure(run: Run, data: DataModule) -> dict[str, Any]:
    """The scale of the checkpoints' tokens, and the fidelity of the best one (or the last)."""
    names = [name for name in ("last", "best") if run.checkpoint(name).exists()]
    scale = rescale(
        [run.checkpoint(name) for name in names],
        data.datasets["train"],
        run.process,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
    )
    results: dict[str, Any] = {"checkpoint": names[-1], "token_scale": scale}
    device = run.process.device
    tokenizer = load_tokenizer(run.checkpoint(names[-1])).to(device)
    lpips = available_lpips(run.weights_dir)
    parts = {"validation": data.val_dataloader()}
    if run.test:
        parts["test"] = data.test_dataloader()
    for name, batches in parts.items():
        if len(batches):
            results[name] = {
                "images": len(data.datasets[name]),
                **measure_fidelity(tokenizer, batches, device, lpips),
            }
            if run.process.is_main:
                print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in results[name].items()))
    return results


def check_machine(process: Process, nodes: int | None, ngpu: int | None) -> None:
    """Compare what the launcher was told with what the program is told (`-nodes`, `-ngpu`).

    Raises:
        UserError: they differ.
    """
    found = {
        "-nodes": (nodes, process.world // process.local_world, "machine(s)"),
        "-ngpu": (ngpu, process.local_world, "process(es) a machine"),
    }
    for flag, (told, started, what) in found.items():
        if told not in (None, started):
            raise UserError(f"{flag}: found {told}, but torchrun started {started} {what}")
