"""Encode a data set once: posterior means to train the generator on.

python scripts/cache_latents.py --config_path STAGE_TWO.yaml --cached_path latents.safetensors
torchrun --nproc_per_node=8 scripts/cache_latents.py ...
"""

from __future__ import annotations

import argparse

from common import distributed
from common.errors import UserError, run_cli
from common.latents import encode_all, save_latents
from generator.data import add_image_flags, image_data
from tokenizer.loading import identity, tokenizer_from_config


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config_path", required=True, help="YAML with the tokenizer and maybe data")
    add_image_flags(parser)
    add("--cached_path", required=True, help="file to write, *.safetensors")
    add("--batch_size", type=int, default=64, help="of one process (default 64)")
    add("--num_workers", type=int, default=0, help="loader processes (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    return parser


def main() -> None:
    flags = build_parser().parse_intermixed_args()
    if not flags.cached_path.endswith(".safetensors"):
        raise UserError(f"--cached_path: found {flags.cached_path}, expected *.safetensors")
    for name, least in {"batch_size": 1, "num_workers": 0}.items():
        if getattr(flags, name) < least:
            raise UserError(f"--{name}: found {getattr(flags, name)}, expected at least {least}")
    with distributed.launch(flags.device) as process:
        tokenizer = tokenizer_from_config(flags.config_path, overrides=flags.overrides)
        header = {"tokenizer": identity(tokenizer)}
        dataset = image_data(flags, tokenizer, train=False, seed=0)
        if getattr(dataset, "train", False):
            raise UserError(
                "data.params.train: crops or flips at random, so that cached images would keep one "
                "crop and flip for ever; expected train: false (for ImageNetTrain "
                "config.random_crop: false and flip: false)"
            )
        header["class_names"] = list(dataset.class_names)
        tokenizer.to(process.device)
        latents = encode_all(
            dataset,
            lambda pictures: tokenizer.encode(pictures).mode(),
            process,
            flags.batch_size,
            flags.num_workers,
            flags.cached_path,
        )
        if process.is_main:
            save_latents(flags.cached_path, *latents, header)
            print(f"{len(dataset)} images: {flags.cached_path}")


if __name__ == "__main__":
    run_cli(main)
