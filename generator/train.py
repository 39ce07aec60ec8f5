"""Training of the generator: a run from its settings and the checkpoint it goes on from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import config, seeding
from common.config import setting
from common.data.latents import LatentDataset
from common.distributed import Process, broadcast_object
from common.errors import UserError
from common.provenance import cores
from generator.checkpoints import GeneratorFile, is_released, read
from generator.config import TrainConfig
from generator.data import (
    ImageConfig,
    Tokenizer,
    TokenSampler,
    describe_tokens,
    evaluation_batches,
    image_data,
    training_batches,
)
from generator.evaluate import evaluate, save_preview
from generator.inference import set_tf32
from generator.model import Generator
from generator.sampling import SampleConfig
from generator.trainer import LAST, Trainer

NOT_KEPT = ("output_dir", "resume", "ckpt")  # settings that config.yaml does not have

_data, _samples, _machine = (
    partial(setting, group=name) for name in ("tokenizer and data", "samples", "machine and files")
)


@dataclass(frozen=True)
class RunConfig(ImageConfig):
    """Data, samples, machine and files of a training."""

    vae_norm: float | None = _data(None, "scale of the tokens (default: the tokenizer's)", above=0)
    std: float | None = _data(None, "posterior's noise (default: the tokenizer's)", min=0)
    use_cached: bool = _data(False, "train on cached tokens")
    cached_path: str | None = _data(None, "cached tokens, of scripts/cache_latents.py")
    eval_path: str | None = _data(None, "images or tokens of --eval_freq (default: as trained)")
    token_num: int | None = _data(None, "columns of a training image; only checked", min=1)
    num_iter: int | None = _samples(None, "columns of a sample (default: as trained)", min=2)
    num_sampling_steps: int = _samples(100, "Euler steps of a column", min=1)
    temperature: float = _samples(1.0, "scale of the starting noise", min=0)
    cfg: float = _samples(1.0, "guidance scale at the last column; 1: none")
    num_workers: int = _machine(10, "loader processes, no more than there are cores", min=0)
    device: str = _machine("auto", "auto, cpu, cuda or cuda:N")
    output_dir: str | None = _machine(None, "folder of the run (default: --resume)")
    log_dir: str | None = _machine(None, "folder of its logs (default: --output_dir)")
    resume: str | None = _machine(None, "folder of the checkpoint to go on from")
    ckpt: str = _machine(LAST, "name of the checkpoint in --resume")

    def __post_init__(self) -> None:
        if not (self.output_dir or self.resume):
            raise UserError("--output_dir: not given; expected a folder for checkpoints and logs")
        if bool(self.cached_path) != self.use_cached:
            raise UserError("--cached_path and --use_cached: found one, expected both or none")

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.output_dir or self.resume)


def find_source(run: RunConfig) -> Path | None:
    """The checkpoint `ckpt` in `resume`, or the latest one kept if there is no last one; none in a
    run's own folder before the first, so that one command serves all starts."""
    last, here = run.folder / LAST, Path(run.resume or "") / run.ckpt
    same = run.resume is not None and here.parent.resolve() == run.folder.resolve()
    if last.exists() and not (same and run.ckpt == LAST):
        expected = f"--resume {run.folder} to go on from it, or another folder"
        raise UserError(f"--output_dir: {last} is there already; expected {expected}")
    if run.ckpt == LAST and not here.exists():
        kept = list(here.parent.glob("checkpoint-ckpt-*.pth"))
        here = max(kept, key=lambda p: int(p.stem.rpartition("-")[2]), default=here)
    begins = run.resume is None or (same and not any(here.parent.glob("*.pth")))
    return None if begins else here


def settings(given: Mapping[str, Any], old: TrainConfig | None) -> tuple[TrainConfig, list[str]]:
    """The settings of a checkpoint but for what is given now, and a note for each change."""
    if {"lr", "blr"} <= given.keys():
        raise UserError("--blr: found together with --lr, expected one of them")
    before = asdict(old) if old else {}
    after = {**before, **({"lr": None} if "blr" in given else {}), **given}
    changed = [k for k in sorted(before) if before[k] != after[k]]
    if "seed" in changed:
        raise UserError(f"--seed: found {after['seed']}, expected {before['seed']} as so far")
    notes = [f"--{k}: {before[k]} so far, {after[k]} from here on" for k in changed]
    return config.structured(TrainConfig, after, "--"), notes


def prepare(
    run: RunConfig,
    sizes: Mapping[str, Any],
    given: Mapping[str, Any],
    overrides: Sequence[str],
    process: Process,
    open_tokenizer: Callable[[], Tokenizer],
    posterior: Callable[[Tensor, float], Any],
) -> tuple[Trainer, list[str]]:
    """The trainer of a run, and what there is to say of its settings: `sizes` of the generator and
    those `given` of `TrainConfig`. The tokenizer is opened only where it is needed."""
    path = find_source(run)
    file = read(path, process.device) if path else GeneratorFile()
    released = is_released(file.weights)
    if path and not released and None in (file.generator, file.training, file.optimizer):
        raise UserError(f"{path}: no checkpoint of a training; expected one to go on from")
    training, notes = settings(given, file.training)
    set_tf32(training.precision, process.device)

    pixels = training.eval_freq and run.eval_path and Path(run.eval_path).is_dir()
    tokenizer = about = None
    if not run.use_cached or training.sample_freq or pixels:
        if not run.config_path:
            raise UserError("--config_path: not given; expected a YAML file with the tokenizer")
        tokenizer = open_tokenizer()
        about = broadcast_object(describe_tokens(tokenizer) if process.is_main else None)

    def images(given: ImageConfig, train: bool) -> Dataset:
        return image_data(given, overrides, about, train, training.seed if train else 0)

    def tokens(dataset: Dataset) -> TokenSampler:
        cached = isinstance(dataset, LatentDataset)
        encode = None if cached else lambda images: tokenizer.encode(images).mode()
        return TokenSampler(encode, posterior, std, scale, process.device)

    if run.use_cached:
        data = LatentDataset(run.cached_path, about.tokenizer if about else None, training.seed)
        about, (columns, channels) = data.header, data.means.shape[2:]
        if run.data_path or run.img_size:
            notes.append("--data_path, --img_size: not read, since --use_cached is given")
    else:
        data = images(run, train=True)
        columns, channels = data[0][0].shape[2] // about.column_width, tokenizer.channels
    if run.token_num not in (None, columns):
        raise UserError(f"--token_num: found {run.token_num}, but the images have {columns}")
    std = about.std if run.std is None else run.std
    scale = float(torch.tensor(run.vae_norm or about.token_scale))
    names, workers = list(data.class_names), min(run.num_workers, cores())

    measure = preview = None
    if training.eval_freq:
        held_out = data
        if pixels:
            width = columns * about.column_width
            held_out = images(replace(run, data_path=run.eval_path, img_size=width), train=False)
        elif run.eval_path:
            held_out = LatentDataset(run.eval_path, about.tokenizer)
        if list(held_out.class_names) != names:
            raise UserError(f"--eval_path: {run.eval_path} has other classes than the images")
        batches = evaluation_batches(held_out, training, process, workers)
        used = {"tokens": tokens(held_out), "config": training, "process": process}
        measure = partial(evaluate, batches=batches, **used)
    if training.sample_freq:
        tokenizer.token_scale.fill_(scale)
        sampled = SampleConfig(run.num_iter or columns, run.cfg, seed=training.seed)
        steps, temperature = run.num_sampling_steps, run.temperature
        sampled = replace(sampled, steps=steps, temperature=temperature)
        preview = partial(save_preview, tokenizer=tokenizer, config=sampled)

    known = file.sizes(sizes, channels=channels, classes=len(names))
    loader = training_batches(data, training, process, workers)
    seeding.seed_everything(training.seed)
    network = Generator(known).to(process.device)
    if released:
        file.fill(network, "model", path)
    header = {"class_names": names, "tokenizer": about.tokenizer, "token_scale": scale, "std": std}
    where = run.folder, header, Path(run.log_dir or run.folder)
    learned = network, training, process, loader, tokens(data), columns
    trainer = Trainer(*learned, *where, measure, preview)
    if released:
        file.fill(trainer.ema.model, "model_ema" if file.model_ema else "model", path)
        notes.append(f"beginning with the released weights of {path}, and a fresh optimizer")
    elif path:
        trainer.load(file, path)
        notes.append(f"resuming after update {trainer.step}, in epoch {trainer.epoch + 1}")
    elif run.resume is not None:
        notes.append(f"no checkpoint in {run.resume} yet: training from the beginning")
    return trainer, notes


def keep_settings(run: RunConfig, overrides: Sequence[str], trainer: Trainer) -> None:
    """Write config.yaml, which `--config` takes and which has all that was set."""
    values: dict[str, Any] = {"overrides": list(overrides)}
    for part in (run, trainer.model.config, trainer.config):
        for field in fields(part):
            values[field.metadata["flag"] or field.name] = getattr(part, field.name)
    if trainer.config.lr is not None:
        del values["blr"]
    kept = {k: v for k, v in values.items() if v not in (None, []) and k not in NOT_KEPT}
    config.save(kept, run.folder / "config.yaml")
