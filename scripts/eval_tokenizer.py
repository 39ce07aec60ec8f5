"""Measure what a tokenizer loses: rFID, PSNR, SSIM and LPIPS of reconstructions.

    python scripts/eval_tokenizer.py logs/<run>/checkpoints/last.ckpt --output_dir OUTPUT
    torchrun --nproc_per_node=8 scripts/eval_tokenizer.py CHECKPOINT -b CONFIG.yaml \\
        --output_dir OUTPUT

Reconstructions (EMA weights, the mean of the posterior, rounded to 8 bits as saved images are) of
`data.params.validation` (--part) are compared with the very crops that they were made of. By
default LPIPS and rFID are measured where their networks are at hand, and a line says what was left
out; for rFID, asked for with --extractor or --metrics, a missing network is an error. OUTPUT gets
metrics.json, and reconstructions.png: inputs, reconstructions and differences of images evenly
spread over the set.
"""

from pathlib import Path

from common import cli, distributed, provenance
from common.config import YAML
from common.errors import run_cli
from common.io import write_json
from common.metrics.extraction import open_images, warnings_of
from common.metrics.features import load_extractor
from common.metrics.fid import frechet_distance
from common.metrics.report import MetricConfig, cautions, table
from common.pretrained import files as pretrained
from tokenizer.checkpoints import load_on_all, load_tokenizer
from tokenizer.evaluate import available_lpips, evaluate, save_comparison


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("source", type=Path, help="checkpoint, exported folder, or YAML file that names another")
    add("-b", "--base", type=Path, metavar="YAML", help="config with data (default: the run's)")
    add("--part", default="validation", help="data set, of data.params in the config")
    add("--output_dir", type=Path, required=True, help="folder of the record and the grid")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="over the config, by dotted key")
    cli.add_flags(parser, MetricConfig, without=["reference"])
    flags = cli.parse(parser)
    config, source = cli.read(MetricConfig, flags), flags.source
    with distributed.launch(flags.device) as process:
        run = source.parent.parent / "configs" / "config.yaml"
        base = flags.base or (source if source.suffix in YAML else run)
        given = flags.overrides if source.suffix in YAML else ()
        tokenizer = load_on_all(process, lambda: load_tokenizer(source, given))
        crops, about = open_images(base, flags.part, flags.overrides)
        tokenizer.check_size(*crops[0][0].shape[1:], f"{base}: data.params.{flags.part}: image")

        left: dict[str, str] = {}
        for name, key in (("lpips", "vgg16"), ("rfid", "inception")):
            file = pretrained.FILES[key]
            if not pretrained.present(file, config.weights_dir):
                left[name] = f"{file.name} is missing (scripts/download_weights.py {key})"
        if flags.extractor is not None or config.metrics:
            left.pop("rfid", None)  # asked for
        lpips, extractor = available_lpips(config.weights_dir), None
        if "rfid" not in left:
            extractor = load_extractor(config.extractor, config.weights_dir, process.device)

        loading = (config.metric_bsz, config.metric_workers)
        found = evaluate(tokenizer, crops, process, lpips, extractor, *loading)
        figures, warnings = dict(found.means), warnings_of(crops, about, process)
        if not process.is_main:
            return
        if extractor is not None:
            name = "random_features_distance" if extractor.is_random else "rfid"
            figures[name] = frechet_distance(found.fake.statistics, found.real.statistics)
            warnings += cautions(extractor, len(crops))
        record = {
            "figures": figures,
            "not_measured": left,
            "warnings": warnings,
            "images": about,
            "reference": extractor and about,
            "extractor": extractor and extractor.about,
            "tokenizer": {"identity": tokenizer.fingerprint, "file": str(source)},
            "processes": process.world,
            "conditions": provenance.describe(),
        }
        save_comparison(flags.output_dir / "reconstructions.png", tokenizer, crops)
        write_json(flags.output_dir / "metrics.json", record)
        print(f"{table(record)}\nwritten to {flags.output_dir}")


if __name__ == "__main__":
    run_cli(main)
