"""Fetch the pretrained weights that training and evaluation may need.

    python scripts/download_weights.py [KEY ...]   # these, or all that is missing
    python scripts/download_weights.py --list
    python scripts/download_weights.py --check

Files go to `pretrained_models/`, to the folder that EQUIVARIANT_WEIGHTS names, or to --weights_dir.
What is fetched is compared with the SHA-256 that is known beforehand (the first digits of it, or
what Hugging Face declares) and recorded in SHA256SUMS beside the files, which --check compares with
later. A file that you copy there yourself is as good, as .pth or as .safetensors.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

from common.errors import UserError, run_cli
from common.io import replacing
from common.pretrained.files import FILES, FORMATS, find, folder, present, unconfirmed

SUMS = "SHA256SUMS"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def read_sums(directory: Path) -> dict[str, str]:
    """SHA-256 by file name, as `sha256sum` writes it; other lines are an error."""
    path = directory / SUMS
    if not path.is_file():
        return {}
    sums = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise UserError(f"{path}, line {number}: expected a SHA-256, two spaces and a name")
        sums[match[2]] = match[1]
    return sums


def record(path: Path, digest: str) -> None:
    sums = {**read_sums(path.parent), path.name: digest}
    with replacing(path.parent / SUMS) as file:
        file.write("".join(f"{v}  {k}\n" for k, v in sorted(sums.items())).encode())


def verify(path: Path, name: str, *expected: str | None) -> str:
    """The SHA-256 of the file that is or shall be called `name`.

    Raises:
        UserError: it does not begin with the digits of one that is expected (None: of any).
    """
    digest = sha256(path)
    for wanted in expected:
        if wanted and not digest.startswith(wanted):
            raise UserError(f"{name}: SHA-256 {digest}, expected {wanted}...")
    return digest


def is_safetensors(name: str) -> bool:
    return name.endswith(".safetensors")


def fetch(key: str, directory: Path, url: str | None) -> Path:
    """Fetch one file, whole or not at all, and record its SHA-256."""
    file = FILES[key]
    directory.mkdir(parents=True, exist_ok=True)
    name, expected = file.name, file.sha256
    if url is not None:
        suffix = Path(urlsplit(url).path).suffix
        if suffix in FORMATS and is_safetensors(suffix) != is_safetensors(name):
            name, expected = str(Path(name).with_suffix(suffix)), None  # another file altogether
    target = directory / name
    if url is not None or file.url is not None:
        part = directory / f".{name}.new"
        try:
            torch.hub.download_url_to_file(url or file.url, str(part))
            digest = verify(part, name, expected)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    else:
        repository, path = file.on_hub
        about = get_hf_file_metadata(hf_hub_url(repository, path))
        # stays after a failure, so that the next attempt goes on from there
        parts = directory / f".{key}.parts"
        part = Path(hf_hub_download(repository, path, revision=about.commit_hash, local_dir=parts))
        declared = about.etag if re.fullmatch("[0-9a-f]{64}", about.etag or "") else None
        try:
            digest = verify(part, name, expected, declared)
            os.replace(part, target)
        finally:
            shutil.rmtree(parts)
    record(target, digest)
    return target


def check(directory: Path, key: str, sums: dict[str, str]) -> str:
    """Compare a file that is there with what is known of it; what to say about it."""
    path, file = present(key, directory), FILES[key]
    if path is None:
        listed = [name for name in file.names if name in sums]
        if listed:
            raise UserError(f"{listed[0]}: missing, though {SUMS} lists it")
        return "missing"
    known = [file.sha256 if path.name == file.name else None, sums.get(path.name)]
    verify(path, path.name, *known)
    return f"{path.name}: " + ("as expected" if any(known) else "there; no SHA-256 to compare with")


def show(directory: Path) -> None:
    """The table of all files."""
    sums = read_sums(directory)
    rows = [("key", "file", "MB", "there", "SHA-256", "source")]
    for key, file in FILES.items():
        path = present(key, directory)
        name = path.name if path else Path(file.name).name
        size = path.stat().st_size / 1e6 if path else file.megabytes
        state = "recorded" if name in sums else f"{file.sha256}..." if file.sha256 else "-"
        if file.on_hub and state == "-":
            state = "from the hub"
        shown = "?" if size is None else f"{size:.1f}"
        mark = "" if file.confirmed else " (not confirmed)"
        rows.append((key, name, shown, "yes" if path else "no", state, file.source + mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"{directory.absolute()}:")
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def each(keys: list[str], work: Callable[[str], str]) -> bool:
    """Do `work` for every key, whatever happens with others; whether all went well."""
    failed = False
    for key in keys:
        try:
            print(f"{key}: {work(key)}", flush=True)
        except Exception as error:  # network, hub and disk fail in many ways
            print(f"error: {key}: {in_one_line(error)}", file=sys.stderr, flush=True)
            failed = True
    return not failed


def in_one_line(error: Exception) -> str:
    """What went wrong; of a message of many lines the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = [] if isinstance(error, UserError) else [type(error).__name__]
    return ": ".join([*kind, *lines[:1]])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("keys", nargs="*", metavar="KEY", help=", ".join(FILES))
    add("--weights_dir", type=Path, metavar="DIR", help="folder of the weights")
    add("--list", action="store_true", help="list all files and fetch none")
    add("--check", action="store_true", help="compare what is there with its SHA-256; fetch none")
    add(
        "--url",
        action="append",
        default=[],
        metavar="KEY=URL",
        help="fetch KEY from this address instead; may be given several times",
    )
    return parser


def main() -> None:
    flags = build_parser().parse_intermixed_args()
    urls = {}
    for given in flags.url:
        key, _, urls[key] = given.partition("=")
        if not urls[key]:
            raise UserError(f"--url: found {given}, expected KEY=URL")
    keys = list(dict.fromkeys([*flags.keys, *urls]))
    for key in keys:
        if key not in FILES:
            raise UserError(f"KEY: found {key!r}, expected one of {', '.join(FILES)}")
    directory = folder(flags.weights_dir)

    def get(key: str) -> str:
        path = present(key, directory)
        if path is not None:
            return f"{path} is there already"
        if FILES[key].package is not None:
            find(key, directory)  # says what is wrong
        try:
            return str(fetch(key, directory, urls.get(key)))
        except Exception as error:
            source = urls.get(key) or FILES[key].source + unconfirmed(key)
            raise UserError(f"{in_one_line(error)}; from {source}") from error

    if flags.list:
        show(directory)
    elif flags.check:
        sums = read_sums(directory)
        if not each(keys or list(FILES), lambda key: check(directory, key, sums)):
            sys.exit(1)
    elif not each(keys or list(FILES), get):
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
