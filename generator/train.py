"""Training of the generator: a run from its settings and the checkpoint it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import checkpoint, config, seeding
from common.config import setting
from common.data.latents import LatentDataset, LatentHeader
from common.distributed import Process, broadcast_object
from common.errors import UserError
from common.provenance import cores
from generator.checkpoints import complete, from_released, is_released, read_once, sizes_of
from generator.config import TrainConfig
from generator.data import (
    ImageConfig,
    Tokenizer,
    TokenSampler,
    count_columns,
    describe_tokens,
    image_data,
    is_latent,
    training_batches,
)
from generator.evaluate import Evaluation, Preview
from generator.model import Generator
from generator.sampling import SampleConfig
from generator.trainer import LAST, STATE, Trainer

NOT_KEPT = ("output_dir", "resume", "ckpt")  # settings that config.yaml does not have
FIXED = ("seed",)  # a run cannot go on with another one


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
        if not (self.use_cached or self.config_path):
            raise UserError("--config_path: not given; expected a YAML file with the tokenizer")

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.output_dir or self.resume)


def find_source(run: RunConfig, process: Process) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint `ckpt` in `resume`, and what it holds.

    A command that resumes its own folder begins there if nothing has been written yet, so that
    one command serves the first start and all later ones; where the last checkpoint is missing,
    the latest that was kept takes its place.
    """
    last = run.folder / LAST
    same = run.resume is not None and Path(run.resume).resolve() == run.folder.resolve()
    if last.exists() and not same:
        raise UserError(
            f"--output_dir: {last} is there already; expected --resume {run.folder} to go on from "
            "it, or another folder"
        )
    if last.exists() and run.ckpt != LAST:
        raise UserError(
            f"--ckpt: found {run.ckpt}, but {last}, which would be overwritten, may be later; "
            "expected another --output_dir to go on from it"
        )
    if run.resume is None:
        return None
    path = Path(run.resume) / run.ckpt
    if run.ckpt == LAST and not path.exists():
        kept = list(path.parent.glob("checkpoint-ckpt-*.pth"))
        path = max(kept, key=lambda p: int(p.stem.rpartition("-")[2]), default=path)
    if same and not any(path.parent.glob("*.pth")):
        return None
    state = read_once(path, process.device)
    absent = STATE - state.keys()
    if absent and not is_released(state.get("model", {})):
        raise UserError(f"{path}: has no {', '.join(sorted(absent))}; expected a checkpoint")
    return path, state


def settings(
    given: Mapping[str, Any], source: tuple[Path, dict] | None
) -> tuple[TrainConfig, list]:
    """The settings: those of the checkpoint, but for what is given now; a line for each change."""
    if {"lr", "blr"} <= given.keys():
        raise UserError("--blr: found together with --lr, expected one of them")
    if source is None or "training" not in source[1]:
        return config.structured(TrainConfig, given, "--"), []
    before = config.structured(TrainConfig, source[1]["training"], f"{source[0]}: training")
    after = config.structured(
        TrainConfig,
        {**asdict(before), **({"lr": None} if "blr" in given else {}), **given},
        "--",
    )
    old, new = asdict(before), asdict(after)
    changed = sorted(name for name in old if old[name] != new[name])
    for name in set(changed) & set(FIXED):
        raise UserError(f"--{name}: found {new[name]}, expected {old[name]}, that of {source[0]}")
    return after, [f"--{k}: {old[k]} so far, {new[k]} from here on" for k in changed]


def prepare(
    run: RunConfig,
    sizes: Mapping[str, Any],
    given: Mapping[str, Any],
    overrides: Sequence[str],
    process: Process,
    open_tokenizer: Callable[[bool], Tokenizer],
    posterior: Callable[[Tensor, float], Any],
) -> tuple[Trainer, list[str]]:
    """The trainer of a run, and what there is to say of its settings.

    Args:
        run: data, machine and files.
        sizes: of the generator, as far as they are given.
        given: settings of `TrainConfig` that are given.
        overrides: key=value, over `config_path`.
        process: this process.
        open_tokenizer: gives the tokenizer on the process's device, with True to all processes
            together. Training on cached tokens opens it for samples alone, on the first process.
        posterior: of a mean and the largest noise.
    """
    source = find_source(run, process)
    training, notes = settings(given, source)
    if training.precision == "tf32":
        if process.device.type == "cpu":
            raise UserError("--precision: found tf32 on a CPU, expected fp32, bf16 or auto there")
        torch.set_float32_matmul_precision("high")
    for_images = not run.use_cached or (training.eval_freq and not _is_cache(run.eval_path))
    opened = cache(lambda: open_tokenizer(bool(for_images)))
    if run.use_cached:
        data: Dataset = LatentDataset(run.cached_path, seed=training.seed)
        about = data.header
        if run.data_path:
            notes.append(f"--data_path: {run.data_path} is not read, since --use_cached is given")
    else:
        tokenizer = opened()
        about = broadcast_object(describe_tokens(tokenizer) if process.is_main else None)
        data = image_data(run, overrides, about.height, about.column_width, True, training.seed)
    scale, std = run.vae_norm or about.token_scale, about.std if run.std is None else run.std
    about = replace(about, token_scale=float(torch.tensor(scale)), std=std)
    columns = count_columns(data, about.column_width)
    _check_columns(run, columns, about)

    def tokens(dataset: Dataset) -> TokenSampler:
        encode = None if is_latent(dataset) else lambda images: opened().encode(images).mode()
        return TokenSampler(encode, posterior, about.std, about.token_scale, process.device)

    names = list(data.class_names)
    workers = min(run.num_workers, cores())
    evaluate = None
    if training.eval_freq:
        held_out = evaluation_data(run, overrides, about, columns, names) or data
        evaluate = Evaluation(
            held_out,
            training.eval_images,
            training.batch_size,
            process,
            tokens(held_out),
            training.seed,
            training.diffusion_batch_mul,
            workers,
        )
    preview = None
    if training.sample_freq:
        if not run.config_path:
            raise UserError("--sample_freq: given without --config_path, the tokenizer of samples")
        sampled = SampleConfig(
            columns=run.num_iter or columns,
            cfg=run.cfg,
            steps=run.num_sampling_steps,
            temperature=run.temperature,
            seed=training.seed,
        )
        preview = Preview(lambda: check_fingerprint(opened(), about), sampled)
    channels = data.means.shape[-1] if is_latent(data) else opened().channels
    known = {"channels": channels, "classes": len(names)}
    path, state = source or (None, {})
    released = is_released(state.get("model", {}))
    if released:
        known = {**asdict(sizes_of(state, state["model"], sizes)), **known}
    model = complete(sizes, state.get("generator", known))
    batch = (training.batch_size, training.accumulate)
    loader = training_batches(data, *batch, process, training.seed, workers)
    seeding.seed_everything(training.seed)
    network = Generator(model).to(process.device)
    if released:
        checkpoint.load_weights(network, from_released(state["model"], network), path)
    trainer = Trainer(
        network,
        training,
        process,
        loader,
        tokens(data),
        columns,
        run.folder,
        header={
            "generator": asdict(model),
            "class_names": names,
            "tokenizer": about.tokenizer,
            "token_scale": about.token_scale,
            "std": about.std,
        },
        logs=Path(run.log_dir) if run.log_dir else None,
        evaluate=evaluate,
        preview=preview,
    )
    if released:
        average = from_released(state.get("model_ema", state["model"]), network)
        checkpoint.load_weights(trainer.ema.model, average, path)
        notes.append(f"beginning with the released weights of {path}, and a fresh optimizer")
    elif source is not None:
        trainer.load(state, path)
        notes.append(f"resuming after update {trainer.step}, in epoch {trainer.epoch + 1}")
    elif run.resume is not None:
        notes.append(f"no checkpoint in {run.resume} yet: training from the beginning")
    return trainer, notes


def evaluation_data(
    run: RunConfig,
    overrides: Sequence[str],
    about: LatentHeader,
    columns: int,
    names: Sequence[str],
) -> Dataset | None:
    """What `eval_path` names, if it is given; it must have the same classes."""
    if run.eval_path is None:
        return None
    if _is_cache(run.eval_path):
        data: Dataset = LatentDataset(run.eval_path, about.tokenizer)
    else:
        width = columns * about.column_width
        images = replace(run, data_path=run.eval_path, img_size=width)
        data = image_data(images, overrides, about.height, about.column_width, False, 0)
    if list(data.class_names) != list(names):
        raise UserError(f"--eval_path: {run.eval_path} has other classes than the training data")
    return data


def check_fingerprint(tokenizer: Tokenizer, about: LatentHeader) -> Tokenizer:
    """Refuse a tokenizer that is not the one of the tokens."""
    if tokenizer.fingerprint != about.tokenizer:
        raise UserError(
            f"--config_path: found tokenizer {tokenizer.fingerprint}, but the tokens are of "
            f"{about.tokenizer}"
        )
    tokenizer.token_scale.fill_(about.token_scale)
    return tokenizer


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


def _check_columns(run: RunConfig, columns: int, about: LatentHeader) -> None:
    width = columns * about.column_width
    if run.token_num not in (None, columns):
        raise UserError(f"--token_num: found {run.token_num}, but the images have {columns}")
    if run.use_cached and run.img_size not in (None, width):
        raise UserError(
            f"--img_size: found {run.img_size}, but the cached images are {width} pixels wide"
        )


def _is_cache(path: str | None) -> bool:
    return path is None or path.endswith(".safetensors")
