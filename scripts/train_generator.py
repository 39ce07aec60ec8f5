"""Train the generator (stage two).

    python scripts/train_generator.py --model tiny_model --config_path TOKENIZER.yaml \\
        --data_path FOLDER --output_dir runs/generator
    torchrun --nproc_per_node=8 scripts/train_generator.py --config RUN.yaml ...

Checkpoints and logs go to --output_dir.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from common import distributed, seeding
from common.distributed import Process
from common.errors import UserError, run_cli
from common.latents import Latents
from common.precision import uses_bf16
from generator.data import (
    add_image_flags,
    count_columns,
    image_data,
    tokenise,
    training_batches,
)
from generator.flags import add_size_flags, parse_with_config, sizes
from generator.model import Generator
from generator.training import Trainer, TrainingConfig
from tokenizer.loading import identity, tokenizer_from_config


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", metavar="YAML", help="any of these flags; the command line wins"
    )
    add_size_flags(parser)

    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--config_path", help="YAML with the tokenizer (model.params.ckpt_path) and maybe data")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    add("--vae_norm", type=float, help="scale of the tokens (default: the tokenizer's own)")
    add_image_flags(group)
    add("--use_cached", action="store_true", help="train on cached tokens")
    add("--cached_path", help="file of scripts/cache_latents.py")
    add("--token_num", type=int, help="columns of a training image; checked, if given")
    add("--num_workers", type=int, default=0, help="loader processes (default 0)")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, default=1200)
    add("--batch_size", type=int, default=64, help="of one process (default 64)")
    add("--blr", type=float, default=1e-4, help="learning rate at a global batch of 256")
    add("--lr", type=float, help="learning rate, instead of --blr")
    add("--min_lr", type=float, default=0.0, help="end of the cosine")
    add("--lr_schedule", default="constant", choices=("constant", "cosine"))
    add("--warmup_epochs", type=float, default=100)
    add("--weight_decay", type=float, default=0.02)
    add("--grad_clip", type=float, default=3.0)
    add("--ema_rate", type=float, default=0.9999)
    add("--attn_dropout", type=float, default=0.1)
    add("--proj_dropout", type=float, default=0.1)
    add("--label_drop_prob", type=float, default=0.1, help="how often a sample loses its class")
    add("--shift_num", type=int, default=16, help="positions are shifted by 0 ... this - 1")
    add("--diffusion_batch_mul", type=int, default=4, help="flow draws a token")
    add("--precision", default="fp32", choices=("fp32", "bf16", "auto"))
    add("--float32", dest="precision", action="store_const", const="fp32", help="--precision fp32")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    add = parser.add_argument_group("files").add_argument
    add("--output_dir", type=Path, help="where checkpoints and logs go (default: --resume)")
    add("--resume", type=Path, metavar="DIR", help="go on from the checkpoint in this folder")
    add("--ckpt", default="checkpoint-last.pth", help="its name there")
    add("--log_freq", type=int, default=20, help="steps between two log entries")
    add("--save_last_freq", type=int, default=1, help="epochs between two checkpoint-last.pth")
    add("--save_freq", type=int, default=0, help="epochs between two that are kept (0: none)")
    return parser


def training_config(flags: argparse.Namespace, process: Process) -> TrainingConfig:
    rate = flags.lr
    if rate is None:
        rate = flags.blr * flags.batch_size * process.world / 256
    fields = TrainingConfig.__dataclass_fields__
    same = {k: v for k, v in vars(flags).items() if k in fields and k != "lr"}
    return TrainingConfig(lr=rate, bf16=uses_bf16(flags.precision, process.device), **same)


def check(flags: argparse.Namespace) -> None:
    """What can be said before anything is loaded."""
    flags.output_dir = flags.output_dir or flags.resume
    for name, expected in {
        "config_path": "a YAML file that names the tokenizer",
        "output_dir": "a folder for checkpoints and logs",
    }.items():
        if getattr(flags, name) is None:
            raise UserError(f"--{name}: not given; expected {expected}")
    if flags.use_cached and not flags.cached_path:
        raise UserError("--cached_path: not given, but --use_cached is; expected a file of tokens")
    if flags.use_cached and flags.data_path:
        print(f"--data_path: {flags.data_path} is not read, since --use_cached is given")
    least = {"epochs": 1, "shift_num": 1, "diffusion_batch_mul": 1, "log_freq": 1}
    for name, value in {**least, "save_last_freq": 1, "save_freq": 0, "num_workers": 0}.items():
        if getattr(flags, name) < value:
            raise UserError(f"--{name}: found {getattr(flags, name)}, expected at least {value}")
    if not 0 <= flags.ema_rate < 1:
        raise UserError(f"--ema_rate: found {flags.ema_rate}, expected a number in [0, 1)")
    last = flags.output_dir / "checkpoint-last.pth"
    if flags.resume is None and last.exists():
        raise UserError(
            f"--output_dir: {last} is there already; expected --resume {flags.output_dir} to go "
            "on from it, or another folder"
        )


def main() -> None:
    flags = parse_with_config(build_parser())
    check(flags)
    with distributed.launch(flags.device) as process:
        tokenizer = tokenizer_from_config(flags.config_path, flags.vae_norm, flags.overrides)
        name = identity(tokenizer)
        if flags.use_cached:
            dataset = Latents(flags.cached_path, name)
        else:
            dataset = image_data(flags, tokenizer, train=True, seed=flags.seed)
        columns = count_columns(dataset, tokenizer)
        if flags.token_num not in (None, columns):
            raise UserError(f"--token_num: found {flags.token_num}, but the images have {columns}")
        loader = training_batches(dataset, flags.batch_size, process, flags.seed, flags.num_workers)
        known = {"channels": tokenizer.channels, "classes": len(dataset.class_names)}
        generator_config = sizes(flags, known)

        tokenizer = tokenizer.to(process.device)
        seeding.seed_everything(flags.seed)
        trainer = Trainer(
            Generator(generator_config).to(process.device),
            training_config(flags, process),
            process,
            loader,
            lambda batch, randomness: tokenise(tokenizer, batch, randomness, process.device),
            flags.output_dir,
            header={
                "generator": asdict(generator_config),
                "class_names": list(dataset.class_names),
                "tokenizer": name,
                "token_scale": float(tokenizer.token_scale),
            },
        )
        if flags.resume:
            trainer.load(flags.resume / flags.ckpt)
        if process.is_main:
            what = f"resuming after epoch {trainer.epoch}" if flags.resume else "training"
            print(f"{what} in {flags.output_dir}", flush=True)
        trainer.run()
        if process.is_main:
            print(f"checkpoint: {flags.output_dir / 'checkpoint-last.pth'}")


if __name__ == "__main__":
    run_cli(main)
