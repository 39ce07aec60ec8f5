"""Fetch the pretrained weights that training and evaluation may need.

    python scripts/download_weights.py [KEY ...]   # these, or all that is missing
    python scripts/download_weights.py --list

Files go to `pretrained_models/`, to the folder that EQUIVARIANT_WEIGHTS names, or to --weights_dir.
A name that ends in .ckpt or .npz is a file of the authors' Hugging Face repository. What is fetched
is compared with the SHA-256 that is known beforehand (its first digits, or what Hugging Face
declares) and recorded in SHA256SUMS, for `sha256sum --check`. A file that you copy there yourself
is as good, as .pth or as .safetensors.
"""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

from common import cli
from common.errors import UserError, run_cli
from common.pretrained.files import AUTHORS_HUB, FILES, FORMATS, WeightFile, folder, present


def fetch(file: WeightFile, directory: Path, url: str | None) -> Path:
    """Fetch one file, whole or not at all, and record its SHA-256."""
    name, expected, address = Path(file.name), file.sha256, url or file.url
    suffix = Path(urlsplit(url or "").path).suffix
    if suffix in FORMATS and suffix != name.suffix in FORMATS:
        name, expected = name.with_suffix(suffix), ""  # another file altogether
    parts = directory / f".{name}.parts"  # stays after a failure, for the next attempt
    parts.mkdir(parents=True, exist_ok=True)
    if address:
        torch.hub.download_url_to_file(address, str(parts / name))
        part = parts / name
    else:
        there = file.hub.rpartition("/")[::2]
        about = get_hf_file_metadata(hf_hub_url(*there))
        part = Path(hf_hub_download(*there, revision=about.commit_hash, local_dir=parts))
        if re.fullmatch("[0-9a-f]{64}", about.etag or ""):
            expected = about.etag
    digest = hashlib.sha256()
    with open(part, "rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    found = digest.hexdigest()
    if found.startswith(expected):
        os.replace(part, directory / name)
    shutil.rmtree(parts)
    if not found.startswith(expected):
        raise UserError(f"{name}: found SHA-256 {found}, expected {expected}...")
    with open(directory / "SHA256SUMS", "a") as sums:
        sums.write(f"{found}  {name}\n")
    return directory / name


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("keys", nargs="*", metavar="KEY", help=f"{', '.join(FILES)}, or a file of {AUTHORS_HUB}")
    add("--weights_dir", type=Path, metavar="DIR", help="folder of the weights")
    add("--list", action="store_true", help="list all files and fetch none")
    add("--url", action="append", default=[], metavar="KEY=URL", help="fetch KEY from there")
    flags = cli.parse(parser)
    urls = dict(given.partition("=")[::2] for given in flags.url)
    directory, failed = folder(flags.weights_dir), False
    if flags.list:
        print(f"{directory.absolute()}:")
        for key, file in FILES.items():
            state = "there" if present(file, directory) else "missing"
            print(f"{key:14}{state:9}{file.name:44}{file.what}; {file.source}")
        return
    keys = [*dict.fromkeys([*flags.keys, *urls])] or [*FILES]
    authors = [key for key in keys if key.endswith((".ckpt", ".npz"))]
    files = FILES | {k: WeightFile(k, "", hub=f"{AUTHORS_HUB}/{k}") for k in authors}
    if unknown := [key for key in keys if key not in files]:
        raise UserError(f"KEY: found {unknown[0]!r}, expected one of {', '.join(FILES)}")
    for key in keys:
        file = files[key]
        try:
            if there := present(file, directory):
                print(f"{key}: {there} is there already")
            else:
                print(f"{key}: {fetch(file, directory, urls.get(key))}", flush=True)
        except Exception as error:  # network, hub and disk fail in many ways
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            source = urls.get(key) or file.source
            print(f"error: {key}: {reason}; from {source}", file=sys.stderr, flush=True)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    run_cli(main)
