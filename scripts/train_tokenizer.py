"""Train the tokenizer (stage one).

    python scripts/train_tokenizer.py -b configs/quickstart/tokenizer.yaml
    torchrun --nproc_per_node=8 scripts/train_tokenizer.py -t True -b CONFIG.yaml [key=value ...]

A run writes to logs/<date>T<time>_<config name>/{checkpoints,configs,images,logs}, and at its end
results.json. SIGUSR1 writes a checkpoint, SIGTERM and Ctrl-C write one and leave; -r goes on there.
"""

import argparse
import datetime
import pdb
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from common import cli, distributed
from common.errors import UserError, run_cli
from tokenizer.train import Run, read_settings, train

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
SPEED = ("compile", "channels_last", "grad_checkpointing")
SWITCHES = ("-t", "--train", "-d", "--debug", "--no-test", "--scale_lr")
IGNORED = ["project=", "pin_mem", "dist_url=", "dist_on_itp", "local_rank=", "world_size="]


def switched(words: Sequence[str]) -> list[str]:
    """A command line whose switches have a value each: `-t`, `-t True` and `-t False` are sound."""
    found: list[str] = []
    for word in words:
        if word.lower() in ("true", "false") and found and found[-1][-5:] == "=True":
            found[-1] = f"{found[-1][:-5]}={word}"
        else:
            found.append(f"{word}=True" if word in SWITCHES else word)
    return found


def parse() -> argparse.Namespace:
    parser = cli.new_parser(__doc__)
    run = parser.add_argument_group("the run").add_argument
    switch = {"nargs": "?", "const": True, "default": False, "metavar": "BOOL"}
    switch["type"] = lambda word: word.lower() == "true"
    run("-b", "--base", nargs="+", default=[], metavar="YAML", help="configs, merged in order")
    run("-t", "--train", **switch | {"default": True}, help="train, or only check the configs")
    run("-n", "--name", help="name of the run, instead of the first config's")
    run("-f", "--postfix", default="", help="end of the name of the run")
    run("-r", "--resume", type=Path, metavar="RUN", help="run folder or checkpoint to go on from")
    run("-s", "--seed", type=int, help="random seed of weights, order and noise")
    run("-l", "--logdir", type=Path, default=Path("logs"), help="folder of all runs")
    run("-d", "--debug", **switch, help="open the debugger where an error occurs")
    run("--no-test", **switch, help="measure nothing on data.params.test at the end")
    run("--scale_lr", **switch, help="multiply a new run's rate by the global batch size")
    run("--weights_dir", help="folder of pretrained networks (default $EQUIVARIANT_WEIGHTS)")
    run("--wandb", metavar="PROJECT", help="project of Weights & Biases to log to as well")
    speed = parser.add_argument_group("machine and speed").add_argument
    speed("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    speed("-nodes", "--nodes", type=int, help="machines, as torchrun was told")
    speed("-ngpu", "--ngpu", type=int, help="GPUs a machine, as torchrun was told")
    speed("--gpus", metavar="0,1,...", help="numbers of the GPUs that each machine uses")
    speed("--precision", choices=PRECISIONS, help="number format of convolutions and products")
    speed("--accumulate", type=int, metavar="N", help="batches of an update")
    speed("--compile", action="store_true", help="compile encoder and decoder")
    speed("--channels_last", action="store_true", help="keep channels innermost in memory")
    speed("--grad_checkpointing", action="store_true", help="less memory for more arithmetic")
    cli.accept_ignored(parser, IGNORED)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the configs")
    flags = cli.parse(parser, switched(sys.argv[1:]))
    # `-b config.yaml key=value` makes argparse read what follows the files as one more of them
    misread = [word for word in flags.base if "=" in word and not Path(word).exists()]
    flags.base = [word for word in flags.base if word not in misread]
    # a later override wins, wherever on the line it stands
    flags.overrides = [word for word in sys.argv[1:] if word in (*flags.overrides, *misread)]
    return flags


def overrides(flags: argparse.Namespace) -> list[str]:
    """The key=value words of the command line, and the keys that its flags stand for."""
    given = {
        "seed": flags.seed,
        "lightning.trainer.accumulate_grad_batches": flags.accumulate,
        "lightning.trainer.precision": PRECISIONS.get(flags.precision),
        **{f"model.params.{name}": getattr(flags, name) or None for name in SPEED},
    }
    words = [f"{key}={value}" for key, value in given.items() if value is not None]
    return [*flags.overrides, *words]


def locate_run(flags: argparse.Namespace) -> tuple[Path, Path | None, list[Path]]:
    """The run's folder, the checkpoint to go on from, and the configs that describe it."""
    if flags.resume is None:
        if not flags.base:
            raise UserError("-b/--base: no config given; expected one YAML file or more")
        name = (flags.name or Path(flags.base[0]).stem) + flags.postfix
        if name in ("", "..") or Path(name).name != name:
            raise UserError(f"-n/--name, -f/--postfix: found {name!r}, expected a file name")
        now = distributed.broadcast_object(f"{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}")
        return flags.logdir / f"{now}_{name}", None, flags.base
    file = flags.resume
    if file.is_dir():
        file = file / "checkpoints" / "last.ckpt"
    if not file.is_file():
        raise UserError(f"-r/--resume: found no checkpoint {file}; expected a run or a checkpoint")
    if flags.base:
        raise UserError("-b/--base: given along with -r/--resume; expected key=value for changes")
    folder = file.parent.parent
    return folder, file, [folder / "configs" / "config.yaml"]


def wandb_logger(project: str, folder: Path):
    """Lightning's logger for Weights & Biases, whose package is an option."""
    from pytorch_lightning.loggers import WandbLogger

    try:
        return WandbLogger(project=project, name=folder.name, save_dir=folder)
    except ModuleNotFoundError:
        raise UserError("--wandb: the package wandb is missing; `pip install wandb`") from None


def main() -> None:
    flags = parse()
    try:
        gpus = [int(number) for number in flags.gpus.rstrip(",").split(",")] if flags.gpus else None
    except ValueError:
        raise UserError(f"--gpus: found {flags.gpus!r}, expected numbers such as 0,1") from None
    with distributed.launch(flags.device, gpus) as process:
        machines = process.world // process.local_world
        for name, given, found in (
            ("-nodes", flags.nodes, machines),
            ("-ngpu", flags.ngpu, process.local_world),
        ):
            if given not in (None, found):
                raise UserError(f"{name}: found {given}, but torchrun started {found}")
        folder, resume, files = locate_run(flags)
        settings = read_settings(files, overrides(flags))
        loggers = [wandb_logger(flags.wandb, folder)] if flags.wandb and flags.train else []
        given = (flags.weights_dir, flags.scale_lr, not flags.no_test)
        run = Run(folder, process, resume, gpus, loggers, *given)
        try:
            train(run, settings, flags.train)
        except Exception:
            if flags.debug:
                traceback.print_exc()
                pdb.post_mortem()
            raise
        if process.is_main and flags.train:
            print(f"checkpoint: {folder / 'checkpoints' / 'last.ckpt'}")
        elif process.is_main:
            print("the configs are sound; nothing was trained (--train False)")


if __name__ == "__main__":
    run_cli(main)
