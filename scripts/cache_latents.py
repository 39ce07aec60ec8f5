"""Encode a data set once: posterior means to train the generator on.

    python scripts/cache_latents.py --config_path STAGE_TWO.yaml --cached_path latents.safetensors
    torchrun --nproc_per_node=8 scripts/cache_latents.py ...

Of each image the centre crop is encoded, or --crops random ones; where training would flip at
random, both flips of each. The same command goes on with what was stopped, on any number of
processes; what is done lies in <cached_path>.parts until then.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from common import config, distributed
from common.data.latents import LatentHeader, Views, cache_latents
from common.errors import UserError, run_cli
from common.precision import full_float32
from generator.data import add_image_flags, image_data
from tokenizer.loading import identity, tokenizer_from_config


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config_path", required=True, help="YAML with the tokenizer and maybe data")
    add_image_flags(parser)
    add("--cached_path", required=True, type=Path, help="file to write, *.safetensors")
    add("--crops", type=int, default=0, help="random crops of each image (default 0: the centre)")
    add("--seed", type=int, default=0, help="of the crops (default 0)")
    add("--batch_size", type=int, default=64, help="images of one process (default 64)")
    add("--num_workers", type=int, default=0, help="loader processes (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    return parser


def describe_data(flags: argparse.Namespace) -> Any:
    """What the images are, in plain values."""
    if flags.data_path:
        return str(flags.data_path)
    node = OmegaConf.select(config.load(flags.config_path, flags.overrides), "data.params.train")
    return OmegaConf.to_container(node, resolve=True)


def main() -> None:
    flags = build_parser().parse_intermixed_args()
    if flags.cached_path.suffix != ".safetensors":
        raise UserError(f"--cached_path: found {flags.cached_path}, expected *.safetensors")
    for name, least in {"batch_size": 1, "num_workers": 0, "crops": 0}.items():
        if getattr(flags, name) < least:
            raise UserError(f"--{name}: found {getattr(flags, name)}, expected at least {least}")
    with distributed.launch(flags.device) as process:
        tokenizer = tokenizer_from_config(flags.config_path, overrides=flags.overrides)
        dataset = image_data(flags, tokenizer, train=True, seed=flags.seed)
        views = Views(dataset, flags.crops)
        header = LatentHeader(
            tokenizer=identity(tokenizer),
            token_scale=float(tokenizer.token_scale),
            std=float(tokenizer.std),
            height=tokenizer.height,
            column_width=tokenizer.column_width,
            class_names=list(dataset.class_names),
            data=describe_data(flags),
            seed=flags.seed,
        )
        tokenizer = tokenizer.to(process.device)

        def means(pictures: Tensor) -> Tensor:
            with full_float32():
                return tokenizer.encode(pictures).mode()

        fresh = cache_latents(
            views,
            means,
            header,
            process,
            flags.batch_size,
            flags.num_workers,
            flags.cached_path,
        )
        crops = f" x {views.crops} crops" if views.crops else ""
        flips = " x 2 flips" if views.flips else ""
        there = "" if fresh else " (there already)"
        if process.is_main:
            print(f"{len(views)} images{crops}{flips}: {flags.cached_path}{there}")


if __name__ == "__main__":
    run_cli(main)
