"""A run of stage two, from its flags: data, settings, and the checkpoint it goes on from."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import config, seeding
from common.data.latents import Latents
from common.distributed import Process
from common.errors import UserError
from common.seeding import BatchDraws
from generator.data import Tokenizer, count_columns, image_data, tokenise, training_batches
from generator.evaluation import Evaluation
from generator.flags import check_against, flags_of, sizes
from generator.learner import Learner
from generator.model import Generator, GeneratorConfig
from generator.preview import Preview
from generator.settings import TrainingConfig, given, resumed
from generator.training import LAST, Trainer, read_state

NOT_KEPT = ("config", "output_dir", "resume", "ckpt")  # flags that config.yaml does not have


@dataclass(frozen=True)
class Source:
    """A checkpoint that a run goes on from."""

    path: Path
    state: dict[str, Any]


def find_source(flags: argparse.Namespace) -> Source | None:
    """The checkpoint `--ckpt` in `--resume`.

    A command that resumes its own folder begins there if nothing has been written yet, so that
    one command serves the first start and all later ones.

    Raises:
        UserError: there is none, or another run in `--output_dir` would be overwritten.
    """
    last = flags.output_dir / LAST
    same = flags.resume is not None and flags.resume.resolve() == flags.output_dir.resolve()
    if last.exists() and not same:
        raise UserError(
            f"--output_dir: {last} is there already; expected --resume {flags.output_dir} to go "
            "on from it, or another folder"
        )
    if last.exists() and flags.ckpt != LAST:
        raise UserError(
            f"--ckpt: found {flags.ckpt}, but {last}, which would be overwritten, may be later; "
            "expected another --output_dir to go on from it"
        )
    if flags.resume is None or (same and not any(flags.resume.glob("*.pth"))):
        return None
    path = flags.resume / flags.ckpt
    return Source(path, read_state(path))


def settings(
    flags: argparse.Namespace, source: Source | None
) -> tuple[TrainingConfig, GeneratorConfig | None, list[str]]:
    """The settings, the sizes if a checkpoint has them, and a line for each setting that changes.

    Raises:
        UserError: a flag contradicts the checkpoint.
    """
    if source is None:
        return TrainingConfig(**given(flags)), None, []
    training, changes = resumed(source.state["training"], given(flags), source.path)
    model = GeneratorConfig(**source.state["generator"])
    check_against(flags, model)
    return training, model, changes


def prepare(
    flags: argparse.Namespace,
    process: Process,
    tokenizer: Tokenizer,
    name: str,
    source: Source | None,
) -> tuple[Trainer, list[str]]:
    """The run, and what there is to say of its settings.

    Args:
        flags: of `scripts/train_generator.py`.
        process: this process.
        tokenizer: on its device.
        name: its identity.
        source: the checkpoint to go on from.
    """
    training, model, notes = settings(flags, source)
    if training.precision == "tf32":
        if process.device.type == "cpu":
            raise UserError("--precision: found tf32 on a CPU, expected fp32, bf16 or auto there")
        torch.set_float32_matmul_precision("high")
    dataset = training_data(flags, tokenizer, name, training.seed)
    columns = count_columns(dataset, tokenizer)
    if flags.token_num not in (None, columns):
        raise UserError(f"--token_num: found {flags.token_num}, but the images have {columns}")
    if model is None:
        known = {"channels": tokenizer.channels, "classes": len(dataset.class_names)}
        model = sizes(flags, known)
    loader = training_batches(
        dataset,
        training.batch_size,
        training.accumulate,
        process,
        training.seed,
        flags.num_workers,
    )

    def tokens(batch: Any, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        return tokenise(tokenizer, batch, draws, process.device)

    evaluate = None
    if training.eval_freq:
        evaluate = Evaluation(
            evaluation_data(flags, tokenizer, name, dataset),
            training.eval_images,
            training.batch_size,
            process,
            tokens,
            training.seed,
            training.diffusion_batch_mul,
            flags.num_workers,
        )
    preview = Preview(
        tokenizer,
        flags.num_iter or columns,
        steps=flags.num_sampling_steps,
        temperature=flags.temperature,
        cfg=flags.cfg,
        seed=training.seed,
    )
    seeding.seed_everything(training.seed)
    network = Generator(model).to(process.device)
    trainer = Trainer(
        Learner(network, training, process, tokens, columns),
        loader,
        flags.output_dir,
        header={
            "generator": asdict(model),
            "class_names": list(dataset.class_names),
            "tokenizer": name,
            "token_scale": float(tokenizer.token_scale),
            "std": float(tokenizer.std),
        },
        logs=flags.log_dir,
        evaluate=evaluate,
        preview=preview,
    )
    if source is not None:
        trainer.load(source.state, source.path)
        notes.append(f"resuming after update {trainer.step}, in epoch {trainer.epoch + 1}")
    elif flags.resume is not None:
        notes.append(f"no checkpoint in {flags.resume} yet: training from the beginning")
    return trainer, notes


def training_data(flags: argparse.Namespace, tokenizer: Tokenizer, name: str, seed: int) -> Dataset:
    """Pictures, or the cached tokens of `--cached_path`."""
    if not flags.use_cached:
        return image_data(flags, tokenizer, train=True, seed=seed)
    data = Latents(flags.cached_path, name, seed)
    width = count_columns(data, tokenizer) * tokenizer.column_width
    if flags.img_size not in (None, width):
        raise UserError(
            f"--img_size: found {flags.img_size}, but {flags.cached_path} was made of images "
            f"{width} pixels wide"
        )
    return data


def evaluation_data(
    flags: argparse.Namespace, tokenizer: Tokenizer, name: str, training: Dataset
) -> Dataset:
    """What `--eval_path` names, or the training data.

    Raises:
        UserError: it has other classes.
    """
    if flags.eval_path is None:
        return training
    if flags.eval_path.endswith(".safetensors"):
        data: Dataset = Latents(flags.eval_path, name)
    else:
        width = count_columns(training, tokenizer) * tokenizer.column_width
        there = {**vars(flags), "data_path": flags.eval_path, "img_size": width}
        data = image_data(argparse.Namespace(**there), tokenizer, train=False, seed=0)
    if list(data.class_names) != list(training.class_names):
        raise UserError(
            f"--eval_path: {flags.eval_path} has other classes than the training data; expected "
            "the same names"
        )
    return data


def keep_settings(flags: argparse.Namespace, trainer: Trainer) -> None:
    """Write config.yaml, which `--config` takes and which has all that was set."""
    values = {k: v for k, v in vars(flags).items() if k not in NOT_KEPT}
    values |= flags_of(trainer.learner.model.config) | asdict(trainer.config)
    values["blr"] = trainer.config.blr if trainer.config.lr is None else None
    values = {k: v for k, v in values.items() if v not in (None, [])}
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
    config.save(plain, flags.output_dir / "config.yaml")
