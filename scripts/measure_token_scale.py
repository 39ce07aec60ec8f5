"""Measure the scale of a tokenizer's tokens, 1/std, over its training images, and store it.

    python scripts/measure_token_scale.py logs/<run>/checkpoints/last.ckpt
    torchrun --nproc_per_node=8 scripts/measure_token_scale.py CHECKPOINT --base CONFIG.yaml

scripts/train_tokenizer.py does this at the end of a run; here it is for one that was stopped, for
other images, or for a YAML file that names a released tokenizer, whose scale is printed only: pass
it on as --vae_norm.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

from common import cli, config, distributed
from common.config import setting
from common.errors import run_cli
from tokenizer.checkpoints import YAML, load_on_all, load_tokenizer, run_config
from tokenizer.evaluate import SCALE_IMAGES, measure_scale, rescale


@dataclass(frozen=True)
class Options:
    limit: int = setting(SCALE_IMAGES, "images to measure at most", flag="images", min=1)
    batch_size: int = setting(32, "images in a batch of one process", min=1)
    num_workers: int = setting(0, "processes that read images", min=0)


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("source", type=Path, help="checkpoint of ours, or YAML file that names another")
    add("-b", "--base", type=Path, metavar="YAML", help="config with data (default: the run's)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="over the config, by dotted key")
    cli.add_flags(parser, Options)
    flags = cli.parse(parser)
    source, options = flags.source, asdict(cli.read(Options, flags))
    given = config.load(run_config(source, flags.base), flags.overrides)
    data = OmegaConf.select(given, "data.params.train")
    with distributed.launch(flags.device) as process:
        dataset = config.instantiate(data, "data.params.train")
        if source.suffix in YAML:
            given = (source, None, flags.overrides)
            tokenizer = load_on_all(process, lambda: load_tokenizer(*given))
            measure_scale(tokenizer, dataset, process, **options)
        else:
            tokenizer = rescale(source, dataset, process, **options)
        if process.is_main:
            stored = "" if source.suffix in YAML else f", stored in {source}"
            print(f"token scale {float(tokenizer.token_scale):.5f}{stored}")


if __name__ == "__main__":
    run_cli(main)
