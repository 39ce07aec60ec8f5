"""Train the generator (stage two).

    python scripts/train_generator.py --model tiny_model --config_path TOKENIZER.yaml \\
        --data_path FOLDER --output_dir runs/generator
    torchrun --nproc_per_node=8 scripts/train_generator.py --config RUN.yaml ...

Checkpoints, logs, columns.png and config.yaml, which has all that was set, go to --output_dir.
SIGUSR1 writes a checkpoint, SIGTERM writes one and leaves; --resume goes on from there with the
settings of the checkpoint, but for those that are given. See docs/generator_training.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import distributed
from common.errors import UserError, run_cli
from common.signals import Interrupted
from generator.data import add_image_flags
from generator.flags import add_size_flags, parse_with_config
from generator.run import find_source, keep_settings, prepare
from generator.settings import add_training_flags
from generator.training import LAST
from tokenizer.loading import identity, tokenizer_from_config


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", metavar="YAML", help="any of these flags; the command line wins"
    )
    add_size_flags(parser, dropout=True)

    group = parser.add_argument_group("tokenizer and data")
    add = group.add_argument
    add("--config_path", help="YAML with the tokenizer (model.params.ckpt_path) and maybe data")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    add("--vae_norm", type=float, help="scale of the tokens (default: the tokenizer's own)")
    add("--std", type=float, help="largest noise of the posterior (default: the tokenizer's)")
    add_image_flags(group)
    add("--use_cached", action="store_true", help="train on cached tokens")
    add("--cached_path", help="file of scripts/cache_latents.py")
    add("--eval_path", help="folder or cached tokens for --eval_freq (default: training data)")
    add("--token_num", type=int, help="columns of a training image; checked, if given")

    add_training_flags(parser)

    add = parser.add_argument_group("samples, drawn every --sample_freq epochs").add_argument
    add("--num_iter", type=int, help="columns of a sample (default: as the training images)")
    add("--num_sampling_steps", type=int, default=100, help="Euler steps a column (default 100)")
    add("--temperature", type=float, default=1.0, help="scale of the starting noise (default 1)")
    add("--cfg", type=float, default=1.0, help="guidance at the last column (default 1: none)")

    add = parser.add_argument_group("machine and files").add_argument
    add("--num_workers", type=int, default=0, help="loader processes of each process (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--output_dir", type=Path, help="where the run goes (default: --resume)")
    add("--log_dir", type=Path, help="where its logs go (default: --output_dir)")
    add("--resume", type=Path, metavar="DIR", help="go on from the checkpoint in this folder")
    add("--ckpt", default=LAST, help=f"its name there (default {LAST})")
    return parser


def check(flags: argparse.Namespace) -> None:
    """What can be said before anything is loaded."""
    flags.output_dir = flags.output_dir or flags.resume
    for name, expected in {
        "config_path": "a YAML file that names the tokenizer",
        "output_dir": "a folder for checkpoints and logs",
    }.items():
        if getattr(flags, name) is None:
            raise UserError(f"--{name}: not given; expected {expected}")
    if flags.cached_path and not flags.use_cached:
        raise UserError(f"--cached_path: found {flags.cached_path}, but --use_cached is not given")
    if flags.use_cached and not flags.cached_path:
        raise UserError("--cached_path: not given, but --use_cached is; expected a file of tokens")
    for name, least in {"num_workers": 0, "num_iter": 2, "num_sampling_steps": 1, "std": 0}.items():
        value = getattr(flags, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name}: found {value}, expected at least {least}")


def main() -> None:
    flags = parse_with_config(build_parser())
    check(flags)
    with distributed.launch(flags.device) as process:
        say = print if process.is_main else lambda *_, **__: None
        source = find_source(flags)
        tokenizer = tokenizer_from_config(flags.config_path, flags.vae_norm, flags.overrides)
        tokenizer.std = tokenizer.std if flags.std is None else flags.std
        name = identity(tokenizer)
        trainer, notes = prepare(flags, process, tokenizer.to(process.device), name, source)
        del source
        if flags.use_cached and flags.data_path:
            notes.append(f"--data_path: {flags.data_path} is not read, since --use_cached is given")
        for note in notes:
            say(note)
        if trainer.finished:
            done, limits = trainer.step, trainer.config
            say(
                f"nothing is left to do after {done} updates; expected more than --epochs "
                f"{limits.epochs} and --max_steps {limits.max_steps} (0: no limit)"
            )
            return
        if process.is_main:
            keep_settings(flags, trainer)
        say(f"training in {flags.output_dir}", flush=True)
        try:
            trainer.run()
        except Interrupted:
            say(f"left on SIGTERM; --resume {flags.output_dir} goes on from there")
        else:
            say(f"checkpoint: {flags.output_dir / LAST}")


if __name__ == "__main__":
    run_cli(main)
