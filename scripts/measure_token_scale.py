"""Measure the scale of a tokenizer's tokens, 1/std, over its training images, and store it.

    python scripts/measure_token_scale.py logs/<run>/checkpoints/last.ckpt
    torchrun --nproc_per_node=8 scripts/measure_token_scale.py CHECKPOINT --base CONFIG.yaml

scripts/train_tokenizer.py does this at the end of a run; here it is for one that was stopped, for
other images, or for a YAML file that names a released tokenizer, whose scale is printed only: pass
it on as --vae_norm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from omegaconf import OmegaConf

from common import config, distributed
from common.errors import UserError, run_cli
from tokenizer.loading import tokenizer_from_config
from tokenizer.scale import SCALE_IMAGES, measure_scale, rescale

TRAINING_IMAGES = "data.params.train"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, help="a checkpoint of ours, or a YAML file that names another")
    add("-b", "--base", type=Path, metavar="YAML", help="config with data (default: the run's)")
    add("--images", type=int, default=SCALE_IMAGES, help=f"at most (default {SCALE_IMAGES})")
    add("--batch_size", type=int, default=32, help="of one process (default 32)")
    add("--num_workers", type=int, default=0, help="loader processes (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="over the config, by dotted key")
    flags = parser.parse_intermixed_args()
    for name, least in {"images": 1, "batch_size": 1, "num_workers": 0}.items():
        if getattr(flags, name) < least:
            raise UserError(f"--{name}: found {getattr(flags, name)}, expected at least {least}")
    return flags


def main() -> None:
    flags = parse()
    ours = flags.source.suffix not in (".yaml", ".yml")
    base = flags.base or (
        flags.source.parent.parent / "configs" / "config.yaml" if ours else flags.source
    )
    if not flags.source.is_file():
        raise UserError(f"{flags.source}: no such file; expected a checkpoint or a YAML file")
    if not base.is_file():
        raise UserError(
            f"{flags.source}: lies in no run with {base}; expected -b/--base CONFIG.yaml"
        )
    settings = config.load(base, flags.overrides)
    node = OmegaConf.select(settings, TRAINING_IMAGES)
    if node is None:
        raise UserError(f"{base}: has no {TRAINING_IMAGES}; expected training images (-b/--base)")
    with distributed.launch(flags.device) as process:
        dataset = config.instantiate(node, TRAINING_IMAGES)
        options = {
            "batch_size": flags.batch_size,
            "num_workers": flags.num_workers,
            "limit": flags.images,
        }
        if ours:
            scale = rescale([flags.source], dataset, process, **options)
        else:
            tokenizer = tokenizer_from_config(flags.source).to(process.device)
            scale = measure_scale(tokenizer, dataset, process, **options)
        if process.is_main:
            print(f"token scale {scale:.5f}{f', stored in {flags.source}' if ours else ''}")


if __name__ == "__main__":
    run_cli(main)
