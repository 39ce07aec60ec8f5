"""Train the tokenizer (stage one).

    python scripts/train_tokenizer.py -t True -b configs/quickstart/tokenizer.yaml
    torchrun --nproc_per_node=8 scripts/train_tokenizer.py -t True -b CONFIG.yaml [key=value ...]

A run writes to logs/<date>T<time>_<config name>/{checkpoints,configs,images,logs,csv}.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from omegaconf import DictConfig

from common import config, distributed, seeding
from common.coerce import Mismatch, coerce
from common.errors import UserError, run_cli
from tokenizer.trainer import SavedConfig, build_trainer, quieten


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-b", "--base", nargs="+", default=[], metavar="YAML", help="configs, merged in order")
    add("-t", "--train", default="True", metavar="BOOL", help="train, or only check the configs")
    add("-n", "--name", help="name of the run, instead of the first config's")
    add(
        "-r", "--resume", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints"
    )
    add("-s", "--seed", type=int, help="of weights, order and noise (default: the config's, or 0)")
    add("-l", "--logdir", type=Path, default=Path("logs"), help="where runs go (default logs)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--scale_lr", action="store_true", help="multiply a new run's rate by the global batch")
    add("overrides", nargs="*", metavar="key=value", help="over the configs, by dotted key")
    flags = parser.parse_intermixed_args()
    # `-b config.yaml key=value`: what follows the configs is read as one more of them
    misread = [word for word in flags.base if "=" in word and not Path(word).exists()]
    flags.base = [word for word in flags.base if word not in misread]
    # a later override wins, wherever on the line it stands
    flags.overrides = [word for word in sys.argv[1:] if word in (*flags.overrides, *misread)]
    if flags.train.lower() not in ("true", "false"):
        raise UserError(f"-t/--train: found {flags.train!r}, expected True or False")
    return flags


def locate_run(flags: argparse.Namespace) -> tuple[Path, Path | None, list[Path]]:
    """The run's folder, the checkpoint to go on from, and the configs that describe it."""
    if flags.resume is None:
        if not flags.base:
            raise UserError("-b/--base: no config given; expected one YAML file or more")
        name = flags.name or Path(flags.base[0]).stem
        time = distributed.agreed(f"{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}")
        return flags.logdir / f"{time}_{name}", None, flags.base
    file = flags.resume
    if file.is_dir():
        file = file / "checkpoints" / "last.ckpt"
    if not file.is_file():
        raise UserError(
            f"-r/--resume: found no checkpoint {file}; expected a run's folder or a "
            "checkpoint inside its checkpoints/"
        )
    folder = file.parent.parent
    return folder, file, [folder / "configs" / "config.yaml", *flags.base]


def read(files: list[Path], flags: argparse.Namespace) -> DictConfig:
    """The run's configuration; its seed, which decides all that is random, among it."""
    settings = config.load(files, flags.overrides)
    config.check_keys(settings, ("model", "data", "lightning", "seed"), "")
    config.check_keys(settings.get("lightning") or {}, ("trainer",), "lightning")
    for key in ("model", "data"):
        if not isinstance(settings.get(key), DictConfig):
            raise UserError(f"{key}: found {settings.get(key)!r}, expected target and params")
    if flags.seed is not None:
        settings.seed = flags.seed
    settings.setdefault("seed", 0)
    settings.model.setdefault("base_learning_rate", 1.92e-4)
    for node, key, kind in (
        (settings, "seed", int),
        (settings.model, "base_learning_rate", float),
    ):
        try:
            node[key] = coerce(node[key], kind)
        except Mismatch:
            raise UserError(f"{key}: found {node[key]!r}, expected {kind.__name__}") from None
    return settings


def main() -> None:
    flags = parse()
    quieten()
    with distributed.launch(flags.device) as process:
        folder, resume, files = locate_run(flags)
        settings = read(files, flags)
        seeding.seed_everything(settings.seed)
        data = config.instantiate(settings.data, "data", seed=settings.seed)
        data.setup("fit")
        if flags.scale_lr and resume is None:  # a run's own config has the rate that it uses
            settings.model.base_learning_rate *= data.batch_size * process.world
        model = settings.model.copy()
        rate = model.pop("base_learning_rate")
        module = config.instantiate(model, "model", learning_rate=rate, seed=settings.seed)
        trainer = build_trainer(
            folder,
            (settings.get("lightning") or {}).get("trainer") or {},
            process,
            validates="validation" in data.datasets,
            callbacks=[SavedConfig(settings, folder / "configs" / "config.yaml")],
        )
        if flags.train.lower() == "false":
            if process.is_main:
                print("the configs are sound; nothing was trained (--train False)")
            return
        if process.is_main:
            print(f"{'resuming' if resume else 'training'} in {folder}", flush=True)
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        if process.is_main:
            print(f"checkpoint: {folder / 'checkpoints' / 'last.ckpt'}")


if __name__ == "__main__":
    run_cli(main)
