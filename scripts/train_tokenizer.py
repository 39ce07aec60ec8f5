"""Train the tokenizer (stage one).

    python scripts/train_tokenizer.py -b configs/quickstart/tokenizer.yaml
    torchrun --nproc_per_node=8 scripts/train_tokenizer.py -t True -b CONFIG.yaml [key=value ...]

A run writes to logs/<date>T<time>_<config name>/{checkpoints,configs,images,logs}, and at its end
results.json. SIGUSR1 writes a checkpoint, SIGTERM and Ctrl-C write one and leave; -r goes on there.
"""

import argparse
import datetime
import re
import sys
from pathlib import Path

from common import cli, config, distributed
from common.errors import UserError, run_cli
from tokenizer.train import Settings, train

IGNORED = ["project=", "pin_mem", "dist_url=", "dist_on_itp", "local_rank="]
IGNORED += ["world_size=", "debug=", "scale_lr="]


def switch(word: str) -> bool:
    """`-t True` and `-t False`, as the released lines have it; `-t` alone is True."""
    return bool(["false", "true"].index(word.lower()))


def gpu_numbers(words: str) -> list[int]:
    return [int(number) for number in words.rstrip(",").split(",")]


def parse() -> argparse.Namespace:
    parser = cli.new_parser(__doc__)
    run = parser.add_argument_group("the run").add_argument
    bare = {"nargs": "?", "type": switch, "const": True, "default": False, "metavar": "BOOL"}
    run("-b", "--base", nargs="+", default=[], metavar="YAML", help="configs, merged in order")
    run("-t", "--train", **bare | {"default": True}, help="train, or only check the configs")
    run("-n", "--name", help="name of the run, instead of the first config's")
    run("-f", "--postfix", default="", help="end of the name of the run")
    run("-r", "--resume", type=Path, metavar="RUN", help="run folder or checkpoint to go on from")
    run("-s", "--seed", type=int, help="random seed of weights, order and noise")
    run("-l", "--logdir", type=Path, default=Path("logs"), help="folder of all runs")
    run("--no-test", **bare, help="measure nothing on data.params.test at the end")
    run("--weights_dir", help="folder of pretrained networks (default $EQUIVARIANT_WEIGHTS)")
    machine = parser.add_argument_group("the machine").add_argument
    machine("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    machine("-nodes", "--nodes", type=int, help="machines, as torchrun was told")
    machine("-ngpu", "--ngpu", type=int, help="GPUs a machine, as torchrun was told")
    text = "numbers of the GPUs that each machine uses"
    machine("--gpus", type=gpu_numbers, metavar="0,1,...", help=text)
    parser.add_argument("-d", dest="debug", **bare | {"help": argparse.SUPPRESS})
    cli.accept_ignored(parser, IGNORED)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the configs")
    # taken out first, because they may follow a flag that takes any number of words
    overrides = [word for word in sys.argv[1:] if re.match(r"\w+(\.\w+)+=", word)]
    flags = cli.parse(parser, [word for word in sys.argv[1:] if word not in overrides])
    flags.overrides += overrides
    if flags.seed is not None:
        flags.overrides.append(f"seed={flags.seed}")
    if flags.no_test:
        flags.overrides.append("data.params.test=null")
    return flags


def locate_run(flags: argparse.Namespace) -> tuple[Path, Path | None, list[Path]]:
    """The run's folder, the checkpoint to go on from, and the configs that describe it."""
    if bool(flags.base) == bool(flags.resume):
        raise UserError("-b/--base, -r/--resume: expected one of them, and key=value for changes")
    if flags.resume is None:
        name = (flags.name or Path(flags.base[0]).stem) + flags.postfix
        if name in ("", "..") or Path(name).name != name:
            raise UserError(f"-n/--name, -f/--postfix: found {name!r}, expected a file name")
        now = distributed.broadcast_object(f"{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}")
        return flags.logdir / f"{now}_{name}", None, flags.base
    file = flags.resume / "checkpoints" / "last.ckpt" if flags.resume.is_dir() else flags.resume
    if not file.is_file():
        raise UserError(f"-r/--resume: found no checkpoint {file}; expected a run or a checkpoint")
    folder = file.parent.parent
    return folder, file, [folder / "configs" / "config.yaml"]


def main() -> None:
    flags = parse()
    with distributed.launch(flags.device, flags.gpus) as process:
        started = (process.world // process.local_world, process.local_world)
        given = (flags.nodes or started[0], flags.ngpu or started[1])
        if given != started:
            raise UserError(f"-nodes, -ngpu: found {given}, but torchrun started {started}")
        folder, resume, files = locate_run(flags)
        settings = config.structured(Settings, config.load(files, flags.overrides))
        train(settings, folder, process, resume, flags.gpus, flags.weights_dir, flags.train)
        if process.is_main and flags.train:
            print(f"checkpoint: {folder / 'checkpoints' / 'last.ckpt'}")
        elif process.is_main:
            print("the configs are sound; nothing was trained (--train False)")


if __name__ == "__main__":
    run_cli(main)
