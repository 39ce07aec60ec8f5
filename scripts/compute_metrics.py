"""Compare images with a reference: FID, Inception Score, KID, precision and recall.

    python scripts/compute_metrics.py runs/samples/images statistics.npz
    torchrun --nproc_per_node=8 scripts/compute_metrics.py IMAGES REFERENCE [key=value ...]

IMAGES and REFERENCE are folders of images, or YAML files whose `data.params.validation` they are,
with its crops; REFERENCE may be statistics (.npz) too. Figures and all they depend on go to
metrics.json. What is odd, such as JPEGs, is in its `warnings`; --strict makes errors of JPEGs and
of sizes that differ. Nothing is downloaded: scripts/download_weights.py does that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import checkpoint, distributed
from common import provenance as environment
from common.errors import UserError, run_cli
from common.metrics.features import load_extractor, random_seed, random_weights
from common.metrics.fid import count_splits
from common.metrics.references import load_reference
from common.metrics.report import add_metric_flags, measure_images, measures_of, table
from common.metrics.sources import YAML, open_images
from common.metrics.statistics import SUFFIX
from common.records import write_json

ROOT = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", help="a folder of images, or a YAML file")
    add("reference", help="a folder of images, a YAML file, or statistics (.npz)")
    add("overrides", nargs="*", metavar="key=value", help="over a YAML file, by dotted key")
    add("--part", default="validation", help="data.params.PART of a YAML file")
    add("--num_images", type=int, metavar="N", help="refuse IMAGES if they are not N")
    add("--strict", action="store_true", help="refuse IMAGES that are JPEGs or differ in size")
    add("--json", type=Path, default=Path("metrics.json"), metavar="FILE", help="(metrics.json)")
    add(
        "--random_weights",
        type=Path,
        metavar="FILE.pth",
        help="keep the weights of --extractor random, for torch-fidelity's own command line "
        "(--feature-extractor-weights-path)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_metric_flags(parser, reference=False)
    return parser


def main() -> None:
    flags = build_parser().parse_intermixed_args()
    measures = measures_of(flags)

    def overrides(source: str) -> list[str]:
        return flags.overrides if source.endswith(YAML) else []

    if flags.overrides and not (overrides(flags.images) or overrides(flags.reference)):
        raise UserError(f"override {flags.overrides[0]!r}: given without a YAML file to change")
    if flags.strict and flags.images.endswith(YAML):
        raise UserError(f"--strict: given with {flags.images}, expected a folder of images")
    if flags.images.endswith(SUFFIX):
        raise UserError(f"{flags.images}: found statistics, expected images; those come second")
    if flags.random_weights:
        if not measures.extractor.startswith("random"):
            raise UserError("--random_weights: given without --extractor random, whose they are")
        if flags.random_weights.exists():
            raise UserError(f"{flags.random_weights}: is there already; expected another name")
    with distributed.launch(flags.device) as process:
        images = open_images(
            flags.images, None, flags.part, overrides(flags.images), strict=flags.strict
        )
        count = len(images.dataset)
        if flags.num_images not in (None, count):
            raise UserError(f"{flags.images}: found {count} images, expected {flags.num_images}")
        count_splits(measures.splits, count)  # before the work
        extractor = load_extractor(measures.extractor, flags.weights_dir, process.device)
        if flags.random_weights and process.is_main:
            checkpoint.save(flags.random_weights, random_weights(random_seed(measures.extractor)))
        reference = load_reference(
            flags.reference,
            extractor,
            process,
            measures.loading,
            flags.part,
            overrides(flags.reference),
        )
        record = measure_images(images, reference, extractor, measures, process)
        if record is not None:
            write_json(flags.json, record | {"conditions": environment.describe(ROOT)})
            print(table(record))
            print(f"written to {flags.json}")


if __name__ == "__main__":
    run_cli(main)
