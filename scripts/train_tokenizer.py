"""Train the tokenizer (stage one).

    python scripts/train_tokenizer.py -t True -b configs/quickstart/tokenizer.yaml
    torchrun --nproc_per_node=8 scripts/train_tokenizer.py -t True -b CONFIG.yaml [key=value ...]

A run writes to logs/<date>T<time>_<config name>/{checkpoints,configs,images,logs,csv}.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from common import config, distributed, seeding
from common.errors import UserError, run_cli
from tokenizer.trainer import build_trainer


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-b", "--base", nargs="+", default=[], metavar="YAML", help="configs, merged in order")
    add("-t", "--train", default="True", metavar="BOOL", help="train (default True)")
    add("-n", "--name", help="name of the run, instead of the first config's")
    add(
        "-r", "--resume", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints"
    )
    add("-s", "--seed", type=int, default=0, help="of weights, order and noise (default 0)")
    add("-l", "--logdir", type=Path, default=Path("logs"), help="where runs go (default logs)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--scale_lr", action="store_true", help="multiply the learning rate by the global batch")
    add("overrides", nargs="*", metavar="key=value", help="over the configs, by dotted key")
    return parser.parse_intermixed_args()


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


def main() -> None:
    flags = parse()
    with distributed.launch(flags.device) as process:
        folder, resume, files = locate_run(flags)
        settings = config.load(files, flags.overrides)
        config.check_keys(settings, ("model", "data", "lightning"), "")
        seeding.seed_everything(flags.seed)
        data = config.instantiate(settings.data, "data", seed=flags.seed)
        model = settings.model.copy()
        rate = model.pop("base_learning_rate", 1.92e-4)
        if flags.scale_lr:
            rate *= data.batch_size * process.world
        module = config.instantiate(model, "model", learning_rate=rate, seed=flags.seed)
        trainer = build_trainer(
            folder,
            settings.get("lightning", {}).get("trainer", {}),
            process,
            validates=data.nodes["validation"] is not None,
        )
        if process.is_main:
            config.save(settings, folder / "configs" / "config.yaml")
            print(f"{'resuming' if resume else 'training'} in {folder}")
        if flags.train.lower() in ("true", "1", "yes"):
            trainer.fit(module, datamodule=data, ckpt_path=resume)
            if process.is_main:
                print(f"checkpoint: {folder / 'checkpoints' / 'last.ckpt'}")


if __name__ == "__main__":
    run_cli(main)
