"""Train the generator (stage two).

    python scripts/train_generator.py --model tiny_model --config_path TOKENIZER.yaml \\
        --data_path FOLDER --output_dir runs/generator
    torchrun --nproc_per_node=8 scripts/train_generator.py --config RUN.yaml ...

Checkpoints, logs, columns.png and config.yaml, which has all that was set, go to --output_dir.
SIGUSR1 writes a checkpoint; SIGTERM and Ctrl-C write one and leave. --resume goes on from
there with its settings, but for those that are given; a released checkpoint gives its weights
alone. See docs/generator_training.md.
"""

import argparse
import sys
from functools import partial

from common import cli, distributed
from common.errors import run_cli
from generator.config import IGNORED, SIZES, GeneratorConfig, TrainConfig
from generator.sampling import SampleConfig
from generator.train import RunConfig, keep_settings, prepare
from generator.trainer import LAST
from tokenizer.checkpoints import load_on_all, load_tokenizer
from tokenizer.posterior import Posterior


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--config", metavar="YAML", help="any of these flags; the command line wins")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    add("--overrides", nargs="+", dest="kept", default=[], help=argparse.SUPPRESS)
    add("--model", choices=SIZES, help="named sizes, which those given one by one go over")
    for schema in (GeneratorConfig, RunConfig, TrainConfig):
        cli.add_flags(parser, schema)
    cli.add_flags(parser, SampleConfig, without=["seed"])
    add("--float32", dest="precision", action="store_const", const="fp32", help="--precision fp32")
    cli.accept_ignored(parser, [*IGNORED, "num_images=", "eval_bsz="])
    flags = cli.parse(parser)
    typed = {word.partition("=")[0].removeprefix("--") for word in sys.argv}
    if "blr" in typed and "lr" not in typed:  # instead of the file's
        flags.lr = None
    run, sampled = cli.read(RunConfig, flags), cli.read(SampleConfig, flags)
    sizes = SIZES.get(flags.model, {}) | cli.given(GeneratorConfig, flags)
    overrides = [*flags.kept, *flags.overrides]
    load = partial(load_tokenizer, run.config_path, overrides, run.vae_norm)
    given = cli.given(TrainConfig, flags)
    with distributed.launch(run.device) as process:
        opened = partial(load_on_all, process, load)
        trainer, notes = prepare(run, sizes, given, sampled, overrides, process, opened, Posterior)
        if trainer.finished:
            notes.append(f"nothing is left to do after {trainer.step} updates of --epochs")
        elif process.is_main:
            keep_settings(run.folder, overrides, run, sampled, trainer.model.config, trainer.config)
        if process.is_main:
            print(*notes, f"training in {run.folder}", sep="\n", flush=True)
        trainer.run()
        if process.is_main:
            print(f"checkpoint: {run.folder / LAST}")


if __name__ == "__main__":
    run_cli(main)
