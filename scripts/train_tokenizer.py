"""Train the tokenizer (stage one).

    python scripts/train_tokenizer.py -b configs/quickstart/tokenizer.yaml
    torchrun --nproc_per_node=8 scripts/train_tokenizer.py -t True -b CONFIG.yaml [key=value ...]

A run writes to logs/<date>T<time>_<config name>/{checkpoints,configs,images,logs,csv}, and at its
end results.json. SIGUSR1 writes a checkpoint, SIGTERM writes one and leaves; -r goes on from there.
"""

from __future__ import annotations

import argparse
import datetime
import pdb
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from common import config, distributed
from common.coerce import Mismatch, coerce
from common.errors import UserError, run_cli
from common.signals import Interrupted
from tokenizer.run import Run, check_machine, train
from tokenizer.trainer import quieten, wandb_logger

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run = parser.add_argument_group("the run").add_argument
    run("-b", "--base", nargs="+", default=[], metavar="YAML", help="configs, merged in order")
    run("-t", "--train", default="True", metavar="BOOL", help="train, or only check the configs")
    run("-n", "--name", help="name of the run, instead of the first config's")
    run("-f", "--postfix", default="", help="added to the name of the run")
    run(
        "-r", "--resume", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints"
    )
    run("-s", "--seed", type=int, help="of weights, order and noise (default: the config's, or 0)")
    run("-l", "--logdir", type=Path, default=Path("logs"), help="where runs go (default logs)")
    run("-d", "--debug", action="store_true", help="open the debugger where an error occurs")
    run("--no-test", action="store_true", help="measure nothing on data.params.test at the end")
    run("--scale_lr", action="store_true", help="multiply a new run's rate by the global batch")
    run("--weights_dir", help="folder of pretrained networks (default $EQUIVARIANT_WEIGHTS)")
    run("--wandb", metavar="PROJECT", help="log to Weights & Biases too")
    speed = parser.add_argument_group("machine and speed").add_argument
    speed("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    speed("-nodes", "--nodes", type=int, help="machines; must be what torchrun was told")
    speed("-ngpu", "--ngpu", type=int, help="GPUs a machine; must be what torchrun was told")
    speed("--gpus", metavar="0,1,...", help="numbers of the GPUs that each machine uses")
    speed("--precision", choices=PRECISIONS, help="of convolutions and products")
    speed("--accumulate", type=int, metavar="N", help="make an update of N batches")
    speed("--compile", action="store_true", help="compile encoder and decoder")
    speed("--channels_last", action="store_true", help="keep channels innermost in memory")
    speed("--grad_checkpointing", action="store_true", help="less memory for more arithmetic")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="over the configs, by dotted key"
    )
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
        name = (flags.name or Path(flags.base[0]).stem) + flags.postfix
        now = distributed.agreed(f"{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}")
        return flags.logdir / f"{now}_{name}", None, flags.base
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
    """The run's configuration, with what the flags say; its seed, which decides all that is
    random, among it."""
    given = {
        "seed": flags.seed,
        "model.params.compile": flags.compile or None,
        "model.params.channels_last": flags.channels_last or None,
        "model.params.grad_checkpointing": flags.grad_checkpointing or None,
        "lightning.trainer.accumulate_grad_batches": flags.accumulate,
        "lightning.trainer.precision": PRECISIONS.get(flags.precision),
    }
    shortcuts = [f"{key}={value}" for key, value in given.items() if value is not None]
    settings = config.load(files, [*flags.overrides, *shortcuts])
    config.check_keys(settings, ("model", "data", "lightning", "seed"), "")
    settings.setdefault("lightning", {})
    if settings.lightning is None:
        settings.lightning = {}
    config.check_keys(settings.lightning, ("trainer", "checkpoint_every"), "lightning")
    for key in ("model", "data"):
        if not isinstance(settings.get(key), DictConfig):
            raise UserError(f"{key}: found {settings.get(key)!r}, expected target and params")
    settings.setdefault("seed", 0)
    settings.model.setdefault("base_learning_rate", 1.92e-4)
    settings.lightning.setdefault("checkpoint_every", 0)
    for node, key, kind in (
        (settings, "seed", int),
        (settings.model, "base_learning_rate", float),
        (settings.lightning, "checkpoint_every", int),
    ):
        try:
            node[key] = coerce(node[key], kind)
        except Mismatch:
            raise UserError(f"{key}: found {node[key]!r}, expected {kind.__name__}") from None
    return settings


def gpu_numbers(words: str | None) -> list[int] | None:
    """The numbers of `--gpus 0,1,...`."""
    if words is None:
        return None
    try:
        return [int(word) for word in words.split(",") if word.strip()]
    except ValueError:
        raise UserError(f"--gpus: found {words!r}, expected numbers such as 0,1") from None


def main() -> None:
    flags = parse()
    quieten()
    gpus = gpu_numbers(flags.gpus)
    with distributed.launch(flags.device, gpus) as process, debugging(flags.debug):
        check_machine(process, flags.nodes, flags.ngpu)
        folder, resume, files = locate_run(flags)
        settings = read(files, flags)
        fit = flags.train.lower() == "true"
        loggers = [wandb_logger(flags.wandb, folder)] if flags.wandb and fit else []
        run = Run(
            folder,
            process,
            resume,
            gpus,
            loggers,
            flags.weights_dir,
            flags.scale_lr,
            test=not flags.no_test,
        )
        say = print if process.is_main else lambda *_, **__: None
        if gpus and process.device.type == "cpu":
            say("--gpus: there is no GPU here; training on the CPU")
        try:
            train(run, settings, fit)
        except Interrupted:
            say(f"left on SIGTERM; `-r {folder}` goes on from {run.checkpoint('last')}")
            return
        if fit:
            say(f"checkpoint: {run.checkpoint('last')}")
        else:
            say("the configs are sound; nothing was trained (--train False)")


@contextmanager
def debugging(wanted: bool) -> Iterator[None]:
    """Open the debugger where an error occurs."""
    try:
        yield
    except Exception:
        if wanted:
            traceback.print_exc()
            pdb.post_mortem()
        raise


if __name__ == "__main__":
    run_cli(main)
