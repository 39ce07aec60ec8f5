"""Fetch the pretrained weights that training and evaluation may need.

    python scripts/download_weights.py [KEY ...]   # these, or all that is missing
    python scripts/download_weights.py --list

Files go to `pretrained_models/`, to the folder that EQUIVARIANT_WEIGHTS names, or to --weights_dir.
A name that ends in .ckpt or .npz is a file of the authors' Hugging Face repository. A file that you
copy there yourself is as good, as .pth or as .safetensors.
"""

import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from common import cli
from common.errors import UserError, run_cli
from common.pretrained.files import AUTHORS_HUB, FILES, WeightFile, folder, present


def fetch(file: WeightFile, directory: Path) -> Path:
    """Fetch one file, whole or not at all; of those with a known SHA-256, no other."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file.name
    if file.url:
        torch.hub.download_url_to_file(file.url, str(path), hash_prefix=file.sha256)
    else:
        repository, _, name = file.hub.rpartition("/")
        parts = directory / f".{file.name}.parts"  # stays after a failure, for the next attempt
        os.replace(hf_hub_download(repository, name, local_dir=parts), path)
        shutil.rmtree(parts)
    return path


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("keys", nargs="*", metavar="KEY", help=f"{', '.join(FILES)}, or a file of {AUTHORS_HUB}")
    add("--weights_dir", type=Path, metavar="DIR", help="folder of the weights")
    add("--list", action="store_true", help="list all files and fetch none")
    flags = cli.parse(parser)
    directory = folder(flags.weights_dir)
    authors = [key for key in flags.keys if key.endswith((".ckpt", ".npz"))]
    files = FILES | {k: WeightFile(k, "", hub=f"{AUTHORS_HUB}/{k}") for k in authors}
    if unknown := [key for key in flags.keys if key not in files]:
        raise UserError(f"KEY: found {unknown[0]!r}, expected one of {', '.join(FILES)}")
    for key in FILES if flags.list else flags.keys or FILES:
        file, there = files[key], present(files[key], directory)
        if flags.list:
            print(f"{key:14}{there or 'missing'!s:70}{file.what}; {file.source}")
        elif there:
            print(f"{key}: {there} is there already")
        else:
            try:
                print(f"{key}: {fetch(file, directory)}", flush=True)
            except Exception as error:  # network, hub and disk fail in many ways
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise UserError(f"{key}: {reason}; from {file.source}") from None


if __name__ == "__main__":
    run_cli(main)
