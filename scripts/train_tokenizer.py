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
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import distributed
from common.errors import UserError, run_cli
from common.signals import Interrupted
from tokenizer import settings
from tokenizer.run import Run, check_machine, train
from tokenizer.trainer import quieten, wandb_logger


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
    machine = parser.add_argument_group("machine and speed")
    speed = machine.add_argument
    speed("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    speed("-nodes", "--nodes", type=int, help="machines; must be what torchrun was told")
    speed("-ngpu", "--ngpu", type=int, help="GPUs a machine; must be what torchrun was told")
    speed("--gpus", metavar="0,1,...", help="numbers of the GPUs that each machine uses")
    speed("--precision", choices=settings.PRECISIONS, help="of convolutions and products")
    speed("--accumulate", type=int, metavar="N", help="make an update of N batches")
    settings.add_speed_flags(machine)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="over the configs, by dotted key"
    )
    flags = settings.parse(parser)
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
    if flags.base:
        raise UserError(
            "-b/--base: given along with -r/--resume, which goes on with the run's own config; "
            "expected key=value for what shall change"
        )
    folder = file.parent.parent
    return folder, file, [folder / "configs" / "config.yaml"]


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
        given = {
            "seed": flags.seed,
            "lightning.trainer.accumulate_grad_batches": flags.accumulate,
            "lightning.trainer.precision": settings.PRECISIONS.get(flags.precision),
        }
        shortcuts = [f"{key}={value}" for key, value in given.items() if value is not None]
        shortcuts += settings.speed_overrides(flags)
        told = settings.read(files, [*flags.overrides, *shortcuts])
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
            train(run, told, fit)
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
