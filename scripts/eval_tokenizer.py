"""Measure what a tokenizer loses: rFID, PSNR, SSIM and LPIPS of reconstructions.

    python scripts/eval_tokenizer.py logs/<run>/checkpoints/last.ckpt --output_dir OUTPUT
    torchrun --nproc_per_node=8 scripts/eval_tokenizer.py CHECKPOINT -b CONFIG.yaml \\
        --output_dir OUTPUT

Reconstructions (EMA weights, the mean of the posterior, rounded to 8 bits as saved images are) of
`data.params.validation` (--part) are compared with the very crops that they were made of. By
default LPIPS and rFID are measured where their networks are at hand, and a line says what was left
out; asked for with --lpips, --extractor or --metrics, a missing network is an error. OUTPUT gets
metrics.json, and reconstructions.png: inputs, reconstructions and differences of the best, the
median and the worst images by PSNR.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from common import cli, distributed, images, provenance
from common.errors import UserError, run_cli
from common.io import write_json
from common.metrics.extraction import open_images
from common.metrics.features import Extractor, load_extractor
from common.metrics.report import Evaluator, MetricConfig, Reference
from common.pretrained import files as pretrained
from common.pretrained.lpips import LPIPS
from tokenizer.checkpoints import YAML, load_on_all, load_tokenizer, run_config
from tokenizer.evaluate import Evaluation, comparison, evaluate, extremes

METRIC_FLAGS = {f.name for f in fields(MetricConfig)} - {"reference"}


def parse() -> argparse.Namespace:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("source", type=Path, help="checkpoint, exported folder, or YAML file that names another")
    add("-b", "--base", type=Path, metavar="YAML", help="config with data (default: the run's)")
    add("--config_path", type=Path, metavar="YAML", help="sizes of a released checkpoint")
    add("--part", default="validation", help="data set, of data.params in the config")
    add("--output_dir", type=Path, required=True, help="folder of the record and the grid")
    add("--lpips", action="store_true", help="measure LPIPS, or fail if its network is missing")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="over the config, by dotted key")
    cli.add_flags(parser, MetricConfig, METRIC_FLAGS)
    return cli.parse(parser)


def networks(
    flags: argparse.Namespace, config: MetricConfig, device: Any
) -> tuple[LPIPS | None, Extractor | None, dict[str, str]]:
    """LPIPS and the extractor, and what is left out because its network is missing."""

    def missing(key: str) -> str:
        name, folder = pretrained.FILES[key].name, pretrained.folder(config.weights_dir)
        return f"{name} is missing in {folder} (scripts/download_weights.py {key})"

    left, lpips, extractor = {}, None, None
    if flags.lpips or pretrained.present("vgg16", config.weights_dir):
        lpips = LPIPS(config.weights_dir)
    else:
        left["lpips"] = missing("vgg16")
    asked = flags.extractor is not None or flags.metrics is not None
    if asked or pretrained.present("inception", config.weights_dir):
        extractor = load_extractor(config.extractor, config.weights_dir, device)
    else:
        left["rfid"] = missing("inception")
    return lpips, extractor, left


def record_of(found: Evaluation, evaluator: Evaluator | None, source: str) -> dict[str, Any]:
    """Figures and what they depend on; the distance to the crops is the rFID."""
    if evaluator is None:
        return {"figures": found.means, "not_measured": {}, "warnings": [], "settings": {}}
    evaluator = replace(
        evaluator, reference=Reference.of(found.real, f"the crops of {source}", len(found.real))
    )
    record = evaluator.compare(found.fake, "reconstructions")
    figures = {
        f"r{name}" if name.startswith(("fid", "fd_")) else name: value
        for name, value in record["figures"].items()
    }
    return record | {"figures": found.means | figures}


def main() -> None:
    flags = parse()
    config = cli.read(MetricConfig, flags)
    with distributed.launch(flags.device) as process:
        base = run_config(flags.source, flags.base)
        given = flags.overrides if flags.source.suffix in YAML else ()
        tokenizer = load_on_all(
            process, lambda: load_tokenizer(flags.source, flags.config_path, given)
        )
        pictures = open_images(base, None, flags.part, flags.overrides)
        try:
            tokenizer.check_size(*pictures[0][0].shape[1:])
        except UserError as error:
            raise UserError(f"{base}: data.params.{flags.part}: {error}") from None
        lpips, extractor, left = networks(flags, config, process.device)
        evaluator = None
        if extractor is not None:
            config = replace(config, metrics=config.metrics or "fid")
            crops = Reference(pictures.source, len(pictures), {})
            evaluator = Evaluator(config, extractor, crops, process)
            evaluator.check(pictures.source, len(pictures))
        start = time.perf_counter()
        size, workers = config.metric_bsz, config.metric_workers
        options = {"batch_size": size, "num_workers": workers, "lpips": lpips}
        found = evaluate(tokenizer, pictures, process, extractor=extractor, **options)
        seconds = time.perf_counter() - start
        odd = pictures.replaced(process)
        if not process.is_main:
            return
        record = record_of(found, evaluator, pictures.source)
        record["not_measured"] |= left
        record["warnings"] += odd
        record |= {
            "tokenizer": {"identity": tokenizer.fingerprint, "file": str(flags.source)},
            "weights": "EMA where the file has them; the mean of the posterior; 8-bit images",
            "lpips": f"version 0.1 on {pretrained.FILES['vgg16'].name}" if lpips else None,
            "images": pictures.describe(),
            "processes": process.world,
            "seconds": seconds,
            "images_per_second": len(pictures) / seconds,
            "conditions": provenance.describe(),
        }
        shown = extremes(found.order)
        rows = comparison(tokenizer, pictures, shown)
        images.save_grid(flags.output_dir / "reconstructions.png", rows, columns=len(shown))
        write_json(flags.output_dir / "metrics.json", record)
        show(record, flags.output_dir)


def show(record: dict[str, Any], folder: Path) -> None:
    """Print a record for people."""
    print(f"{record['images']['images']} reconstructions of {record['images']['source']}")
    for name, value in record["figures"].items():
        print(f"  {name:24}  {'-' if value is None else format(value, '.6g')}")
    for name, reason in record["not_measured"].items():
        print(f"not measured: {name}: {reason}")
    for text in record["warnings"]:
        print(f"warning: {text}")
    print(f"written to {folder}")


if __name__ == "__main__":
    run_cli(main)
