"""Keep the FID statistics of a set of images, to compare many others with them.

    python scripts/compute_fid_stats.py photos/val val256.npz --img_size 256 --crop adm-center
    torchrun --nproc_per_node=8 scripts/compute_fid_stats.py IMAGES FILE.npz [key=value ...]

IMAGES is a folder, or a YAML file whose `data.params.validation` (--part) it is, with its own
crops. With --img_size the images of either are cut to squares: `center` as data sets here do,
`adm-center` as ADM did, whose statistics the paper's FID refers to. The file says what made it,
and is refused with another extractor.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import distributed, provenance
from common.errors import UserError, run_cli
from common.metrics.extraction import CROPS, Crop, Loading, open_images
from common.metrics.features import EXTRACTORS, load_extractor
from common.metrics.fid import write_statistics
from common.metrics.report import compute_statistics

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", help="folder of images, or YAML file")
    add("file", type=Path, help="file to write, *.npz")
    add("overrides", nargs="*", metavar="key=value", help="over a YAML file, by dotted key")
    add("--part", default="validation", help="data.params.PART of a YAML file")
    add("--img_size", type=int, help="side of the squares to cut (default: none are cut)")
    add("--crop", choices=CROPS, help="how to cut them (default center)")
    add("--extractor", default="inception", help=f"{EXTRACTORS} (default inception)")
    add("--weights_dir", help="folder of pretrained networks (default $EQUIVARIANT_WEIGHTS)")
    add("--batch_size", type=int, default=64, help="images in a batch (default 64)")
    add("--num_workers", type=int, default=0, help="processes that read images (default 0)")
    add("--force", action="store_true", help="replace a file that is there")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    flags = parser.parse_intermixed_args()
    if flags.file.suffix != ".npz":
        raise UserError(f"{flags.file}: found suffix {flags.file.suffix!r}, expected .npz")
    if flags.file.exists() and not flags.force:
        raise UserError(f"{flags.file}: is there already; expected another name, or --force")
    if flags.crop and flags.img_size is None:
        raise UserError("--crop: given without --img_size, the side of the squares")
    for name, least in {"img_size": 1, "batch_size": 1, "num_workers": 0}.items():
        value = getattr(flags, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: found {value}, expected at least {least}")
    return flags


def main() -> None:
    flags = parse()
    crop = Crop(flags.crop or "center", flags.img_size) if flags.img_size else None
    with distributed.launch(flags.device) as process:
        images = open_images(flags.images, crop, flags.part, flags.overrides)
        extractor = load_extractor(flags.extractor, flags.weights_dir, process.device)
        loading = Loading(flags.batch_size, flags.num_workers)
        mean, covariance, record = compute_statistics(images, extractor, process, loading)
        if process.is_main:
            record["conditions"] = provenance.describe(ROOT)
            write_statistics(flags.file, mean, covariance, record)
            print(f"{record['images']} images, {record['preparation']}: {flags.file}")
            for text in record["warnings"]:
                print(f"warning: {text}")


if __name__ == "__main__":
    run_cli(main)
