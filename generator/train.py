"""Training of the generator: a run from its settings and the checkpoint it goes on from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import config
from common.config import setting
from common.data.latents import LatentDataset
from common.distributed import Process
from common.errors import UserError
from common.provenance import cores
from generator import data
from generator.checkpoints import GeneratorFile, read
from generator.config import TrainConfig
from generator.evaluate import save_preview
from generator.inference import set_tf32
from generator.model import Generator
from generator.sampling import SampleConfig
from generator.trainer import LAST, Trainer


@dataclass(frozen=True)
class RunConfig(data.ImageConfig):
    """Data, machine and files of a training."""

    vae_norm: float | None = setting(None, "tokens' scale (default: the tokenizer's)", above=0)
    use_cached: bool = setting(False, "train on cached tokens")
    cached_path: str | None = setting(None, "cached tokens, of scripts/cache_latents.py")
    eval_path: str | None = setting(None, "held-out images or tokens (default: the training data)")
    output_dir: str | None = setting(None, "folder of the run (default: --resume)")
    log_dir: str | None = setting(None, "folder of its logs (default: --output_dir)")
    resume: str | None = setting(None, "folder of the checkpoint to go on from")
    ckpt: str = setting(LAST, "name of the checkpoint in --resume")

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
    """The checkpoint `ckpt` in `resume`, or the latest kept one where the last is missing; none in
    a run's own folder before the first, so that one command serves all starts."""
    last, here = run.folder / LAST, Path(run.resume or "") / run.ckpt
    same = run.resume is not None and here.parent.resolve() == run.folder.resolve()
    if last.exists() and not (same and run.ckpt == LAST):
        expected = f"--resume {run.folder} to go on from it, or another folder"
        raise UserError(f"--output_dir: {last} is there already; expected {expected}")
    kept = here.parent.glob("checkpoint-ckpt-*.pth")
    if here.name == LAST and not here.exists():
        here = max(kept, key=lambda path: int(path.stem.rpartition("-")[2]), default=here)
    own = run.output_dir and same and run.ckpt == LAST
    begins = run.resume is None or (own and not here.exists())
    return None if begins else here


def settings(given: Mapping[str, Any], old: TrainConfig | None) -> tuple[TrainConfig, list[str]]:
    """The settings of a checkpoint but for what is given now, and a note for each change."""
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
    sampled: SampleConfig,
    overrides: Sequence[str],
    process: Process,
    open_tokenizer: Callable[[], data.Tokenizer],
    posterior: Callable[[Tensor, float], Any],
) -> tuple[Trainer, list[str]]:
    """The trainer of a run, and what there is to say of its settings: `sizes` of the generator and
    those `given` of `TrainConfig`. The tokenizer is opened only where it is needed."""
    path = find_source(run)
    file = read(path, process.device) if path else GeneratorFile()
    released = "fake_latent" in file.weights
    if path and not released and None in (file.generator, file.training, file.optimizer):
        raise UserError(f"{path}: no checkpoint of a training; expected one to go on from")
    training, notes = settings(given, file.training)
    set_tf32(training.precision, process.device)

    tokenizer = about = encode = None
    if not run.use_cached or training.sample_freq:
        if not run.config_path:
            raise UserError("--config_path: not given; expected a YAML file with the tokenizer")
        tokenizer = open_tokenizer()
        about = data.describe_tokens(tokenizer, process)

    def images(given: data.ImageConfig, train: bool) -> Dataset:
        return data.image_data(given, overrides, about, train, training.seed if train else 0)

    if run.use_cached:
        dataset = LatentDataset(run.cached_path, about.tokenizer if about else None, training.seed)
        about, (columns, channels) = dataset.header, dataset.means.shape[2:]
        if run.data_path:
            notes.append(f"--data_path: {run.data_path} is not read, since --use_cached is given")
    else:
        dataset, encode = images(run, train=True), lambda images: tokenizer.encode(images).mean
        columns = about.rows * (dataset[0][0].shape[2] // about.column_width)
        channels = tokenizer.channels
    scale = float(torch.tensor(run.vae_norm or about.token_scale))
    tokens = data.TokenSampler(encode, posterior, about.std, scale, process.device)
    names, workers = list(dataset.class_names), min(run.num_workers, cores())

    grid = {"grid": about.rows, "window": 0} if about.rows > 1 else {"grid": 0}
    known = file.sizes(sizes, channels=channels, classes=len(names), **grid)
    known.layout.check(columns, "images")
    if known.grid and "shift_num" not in given:
        training = replace(training, shift_num=1)

    held_out = preview = None
    if training.eval_freq:
        measured = dataset
        if run.eval_path and run.use_cached:
            measured = LatentDataset(run.eval_path, about.tokenizer)
            known.layout.check(measured.means.shape[2], "--eval_path")
        elif run.eval_path:
            width = columns // about.rows * about.column_width
            measured = images(replace(run, data_path=run.eval_path, img_size=width), train=False)
        if list(measured.class_names) != names:
            raise UserError(f"--eval_path: {run.eval_path} has other classes than the images")
        held_out = data.evaluation_batches(measured, training, process, workers)
    if training.sample_freq:
        tokenizer.token_scale.fill_(scale)
        sampled = replace(sampled, columns=sampled.columns or columns, seed=training.seed)
        known.layout.check(sampled.columns, "--token_num")
        preview = partial(save_preview, tokenizer=tokenizer, config=sampled)

    loader = data.training_batches(dataset, training, process, workers)
    torch.manual_seed(training.seed)
    model = Generator(known).to(process.device)
    header: dict[str, Any] = {"class_names": names, "tokenizer": about.tokenizer}
    header |= {"token_scale": scale, "std": about.std}
    records: Any = {"folder": run.folder, "log_folder": Path(run.log_dir or run.folder)}
    records |= {"held_out": held_out, "preview": preview}
    trainer = Trainer(model, training, process, loader, tokens, columns, header, **records)
    if released:
        file.fill(trainer.model, "model", path)
        file.fill(trainer.ema.model, "model_ema" if file.model_ema else "model", path)
        notes.append(f"beginning with the released weights of {path}, and a fresh optimizer")
    elif path:
        trainer.load(file, path)
        notes.append(f"resuming after update {trainer.step}, in epoch {trainer.epoch + 1}")
    elif run.resume is not None:
        notes.append(f"no checkpoint in {run.resume} yet: training from the beginning")
    return trainer, notes


def keep_settings(folder: Path, overrides: Sequence[str], *parts: Any) -> None:
    """Write config.yaml, which `--config` takes and which has all that was set."""
    values: dict[str, Any] = {"overrides": list(overrides)}
    for part in parts:
        for field in fields(part):
            values[field.metadata["flag"] or field.name] = getattr(part, field.name)
    own = ("output_dir", "resume", "ckpt")  # of this run alone
    kept = {k: v for k, v in values.items() if v not in (None, []) and k not in own}
    config.save(kept, folder / "config.yaml")
