"""Compare images with a reference: FID and Inception Score.

    python scripts/compute_metrics.py runs/samples/images statistics.npz
    torchrun --nproc_per_node=8 scripts/compute_metrics.py IMAGES REFERENCE [key=value ...]

IMAGES and REFERENCE are folders of images, or YAML files whose `data.params.validation` they are,
with its crops; REFERENCE may be statistics (.npz) too. Figures and all they depend on go to
metrics.json; what is odd, such as JPEGs, is in its `warnings`. Nothing is downloaded.
"""

from pathlib import Path

from common import cli, distributed, provenance
from common.config import YAML
from common.errors import UserError, run_cli
from common.io import write_json
from common.metrics.extraction import ImageFiles, open_images
from common.metrics.report import MetricConfig, open_evaluator, table


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("images", help="folder of images, or YAML file")
    add("reference", help="folder of images, YAML file, or statistics (.npz)")
    add("overrides", nargs="*", metavar="key=value", help="over a YAML file, by dotted key")
    add("--part", default="validation", help="data.params.PART of a YAML file")
    add("--num_images", type=int, metavar="N", help="refuse IMAGES if they are not N")
    add("--strict", action="store_true", help="refuse IMAGES that are JPEGs or differ in size")
    add("--json", type=Path, default=Path("metrics.json"), metavar="FILE", help="file to write")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    cli.add_flags(parser, MetricConfig, without=["metrics", "reference"])
    flags = cli.parse(parser)
    config = cli.read(MetricConfig, flags)
    if flags.overrides and not flags.images.endswith(YAML) and not flags.reference.endswith(YAML):
        raise UserError(f"override {flags.overrides[0]!r}: given without a YAML file to change")
    with distributed.launch(flags.device) as process:
        dataset, about = open_images(flags.images, flags.part, flags.overrides)
        if flags.num_images not in (None, len(dataset)):
            raise UserError(f"{flags.images}: found {len(dataset)}, expected {flags.num_images}")
        if flags.strict and isinstance(dataset, ImageFiles) and (odd := dataset.oddities()):
            raise UserError(f"{flags.images}: --strict: {odd[0]}")
        evaluator = open_evaluator(config, process, flags.part, flags.overrides)
        record = evaluator.measure(dataset, about)
        if record is not None:
            write_json(flags.json, record | {"conditions": provenance.describe()})
            print(f"{table(record)}\nwritten to {flags.json}")


if __name__ == "__main__":
    run_cli(main)
