"""Encode a data set once: posterior means to train the generator on.

python scripts/cache_latents.py --config_path STAGE_TWO.yaml --cached_path latents.safetensors
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from common import config, distributed, images
from common.datasets import ImageFolder
from common.errors import run_cli
from common.latents import save_latents, weights_hash
from tokenizer.loading import tokenizer_from_config


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config_path", required=True, help="YAML with the tokenizer and maybe data")
    add("--data_path", help="folder of class folders of images (default: data in --config_path)")
    add("--cached_path", required=True, help="file to write")
    add("--batch_size", type=int, default=64)
    add("--num_workers", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    return parser


def main() -> None:
    flags = build_parser().parse_intermixed_args()
    with distributed.launch(flags.device) as process:
        tokenizer = tokenizer_from_config(flags.config_path, overrides=flags.overrides)
        header = {"tokenizer": weights_hash(tokenizer.state_dict())}
        tokenizer.to(process.device)
        if flags.data_path:
            dataset = ImageFolder(flags.data_path, tokenizer.height)
        else:
            settings = config.load(flags.config_path, flags.overrides)
            dataset = config.instantiate(settings.data.params.train, "data.params.train")
        loader = DataLoader(dataset, flags.batch_size, num_workers=flags.num_workers)
        means, labels = [], []
        with torch.inference_mode():
            for pictures, names in tqdm(loader, desc="encoding", unit="batch"):
                pictures = images.to_float(pictures.to(process.device))
                means.append(tokenizer.encode(pictures).mode().cpu())
                labels.append(names)
        header["class_names"] = list(dataset.class_names)
        save_latents(flags.cached_path, torch.cat(means), torch.cat(labels), header)
        print(f"{len(dataset)} images: {flags.cached_path}")


if __name__ == "__main__":
    run_cli(main)
