"""Keep the FID statistics of a set of images, to compare many others with them.

    python scripts/compute_fid_stats.py photos/val val256.npz --img_size 256 --crop adm-center
    torchrun --nproc_per_node=8 scripts/compute_fid_stats.py IMAGES FILE.npz [key=value ...]

IMAGES is a folder, whose images are cut to squares with --img_size: `center` as data sets here do,
`adm-center` as ADM did, whose statistics the paper's FID refers to. Or it is a YAML file whose
`data.params.validation` (--part) it is, with its own crops. The file says what made it, and is
refused with another extractor.
"""

from pathlib import Path

from common import cli, distributed, provenance
from common.errors import UserError, run_cli
from common.metrics.extraction import CROPS, open_images
from common.metrics.features import load_extractor
from common.metrics.fid import write_statistics
from common.metrics.report import Evaluator, MetricConfig


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("images", help="folder of images, or YAML file")
    add("file", type=Path, help="file to write, *.npz")
    add("overrides", nargs="*", metavar="key=value", help="over a YAML file, by dotted key")
    add("--part", default="validation", help="data.params.PART of a YAML file")
    add("--img_size", type=int, help="side of the squares to cut (default: none are cut)")
    add("--crop", choices=CROPS, default="center", help="how to cut them")
    add("--force", action="store_true", help="replace a file that is there")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    cli.add_flags(parser, MetricConfig, without=["metrics", "reference"])
    flags = cli.parse(parser)
    if flags.file.suffix != ".npz" or (flags.file.exists() and not flags.force):
        raise UserError(f"{flags.file}: expected a new file *.npz, or --force")
    config = cli.read(MetricConfig, flags)
    with distributed.launch(flags.device) as process:
        given = (flags.part, flags.overrides, flags.img_size, flags.crop)
        dataset, about = open_images(flags.images, *given)
        extractor = load_extractor(config.extractor, config.weights_dir, process.device)
        features, about = Evaluator(config, extractor, process).extract(dataset, about)
        if features is not None:
            record = {**about, "extractor": extractor.about, "conditions": provenance.describe()}
            write_statistics(flags.file, features.statistics, record)
            print(f"{about['images']} images, {about['preparation']}: {flags.file}")
            print("".join(f"warning: {text}\n" for text in about["warnings"]), end="")


if __name__ == "__main__":
    run_cli(main)
