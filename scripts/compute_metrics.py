"""Compare images with a reference: FID, Inception Score, KID, precision and recall.

    python scripts/compute_metrics.py runs/samples/images statistics.npz
    torchrun --nproc_per_node=8 scripts/compute_metrics.py IMAGES REFERENCE [key=value ...]

IMAGES and REFERENCE are folders of images, or YAML files whose `data.params.validation` they are,
with its crops; REFERENCE may be statistics (.npz) too. Figures and all they depend on go to
metrics.json; what is odd, such as JPEGs, is in its `warnings`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from common import checkpoint, distributed, provenance
from common.cli import add_flags, read
from common.errors import UserError, run_cli
from common.io import write_json
from common.metrics.extraction import YAML, open_images
from common.metrics.features import random_weights
from common.metrics.report import MetricConfig, open_evaluator, table

METRIC_FLAGS = {f.name for f in fields(MetricConfig)} - {"reference"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", help="folder of images, or YAML file")
    add("against", metavar="reference", help="folder of images, YAML file, or statistics (.npz)")
    add("overrides", nargs="*", metavar="key=value", help="over a YAML file, by dotted key")
    add("--part", default="validation", help="data.params.PART of a YAML file")
    add("--num_images", type=int, metavar="N", help="refuse IMAGES if they are not N")
    add("--strict", action="store_true", help="refuse IMAGES that are JPEGs or differ in size")
    add("--json", type=Path, default=Path("metrics.json"), metavar="FILE", help="file to write")
    add(
        "--random_weights",
        type=Path,
        metavar="FILE.pth",
        help="keep the weights of --extractor random, for torch-fidelity's own command line "
        "(--feature-extractor-weights-path)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_flags(parser, MetricConfig, METRIC_FLAGS)
    return parser


def main() -> None:
    flags = build_parser().parse_intermixed_args()
    config = replace(read(MetricConfig, flags), reference=flags.against)
    of_images, of_reference = (
        flags.overrides if source.endswith(YAML) else [] for source in (flags.images, flags.against)
    )
    if flags.overrides and not (of_images or of_reference):
        raise UserError(f"override {flags.overrides[0]!r}: given without a YAML file to change")
    if flags.random_weights and not config.extractor.startswith("random"):
        raise UserError("--random_weights: given without --extractor random, whose they are")
    if flags.random_weights and flags.random_weights.exists():
        raise UserError(f"{flags.random_weights}: is there already; expected another name")
    with distributed.launch(flags.device) as process:
        images = open_images(flags.images, None, flags.part, of_images, flags.strict)
        if flags.num_images not in (None, len(images)):
            raise UserError(
                f"{flags.images}: found {len(images)} images, expected {flags.num_images}"
            )
        evaluator = open_evaluator(config, process, flags.part, of_reference)
        if flags.random_weights and process.is_main:
            seed = int(evaluator.extractor.name.partition(":")[2])
            checkpoint.save(flags.random_weights, random_weights(seed))
        record = evaluator.measure(images)
        if record is not None:
            write_json(flags.json, record | {"conditions": provenance.describe()})
            print(table(record))
            print(f"written to {flags.json}")


if __name__ == "__main__":
    run_cli(main)
