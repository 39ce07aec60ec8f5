"""Measure what a tokenizer loses: rFID, PSNR, SSIM and LPIPS of reconstructions.

    python scripts/eval_tokenizer.py logs/<run>/checkpoints/last.ckpt --output_dir OUTPUT
    torchrun --nproc_per_node=8 scripts/eval_tokenizer.py CHECKPOINT -b CONFIG.yaml \\
        --output_dir OUTPUT

Reconstructions (EMA weights, the mean of the posterior, rounded to 8 bits as saved images are) of
`data.params.validation` (--part) are compared with the very crops that they were made of. By
default LPIPS and rFID are measured where their networks are at hand, and a line says what was left
out; asked for with --lpips, --extractor or --metrics, a missing network is an error. OUTPUT gets
metrics.json, and reconstructions.png: inputs, reconstructions and differences of the best, the
median and the worst pictures by PSNR.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from common import distributed, images
from common import provenance as environment
from common.cli import add_flags, read
from common.errors import UserError, run_cli
from common.metrics.extraction import YAML, ImageSet, open_images
from common.metrics.features import Extractor, load_extractor
from common.metrics.report import Evaluator, MetricConfig, Reference
from common.pretrained import files as pretrained
from common.pretrained.lpips import LPIPS
from common.records import write_json
from tokenizer.evaluate import Evaluation, check_pictures, evaluate, extremes, grid
from tokenizer.loading import identity, load_tokenizer, tokenizer_from_config
from tokenizer.model import Tokenizer

METRIC_FLAGS = {f.name for f in fields(MetricConfig)} - {"reference"}
ROOT = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, help="a checkpoint, an exported folder, or a YAML file naming another")
    add("-b", "--base", type=Path, metavar="YAML", help="config with data (default: the run's)")
    add("--part", default="validation", help="data.params.PART of the config")
    add("--output_dir", type=Path, required=True, help="where the record and the grid go")
    add("--lpips", action="store_true", help="an error, rather than a line, if it is missing")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="over the config, by dotted key")
    add_flags(parser, MetricConfig, METRIC_FLAGS)
    parser.set_defaults(extractor=None)
    return parser


def open_source(flags: argparse.Namespace) -> tuple[Tokenizer, ImageSet]:
    """The tokenizer and the pictures that the flags name."""
    if not flags.source.exists():
        raise UserError(f"{flags.source}: no such file; expected a checkpoint or a YAML file")
    named = flags.source.suffix in YAML
    run = flags.source.parent.parent / "configs" / "config.yaml"
    base = flags.base or (flags.source if named else run)
    if not base.is_file():
        raise UserError(
            f"{flags.source}: lies in no run with {base}; expected -b/--base CONFIG.yaml"
        )
    if base.suffix not in YAML:
        raise UserError(f"-b/--base: found {base}, expected a YAML file")
    if named:
        tokenizer = tokenizer_from_config(flags.source, overrides=flags.overrides)
    else:
        tokenizer = load_tokenizer(flags.source)
    pictures = open_images(base, None, flags.part, flags.overrides)
    check_pictures(tokenizer, pictures, f"{base}: data.params.{flags.part}")
    return tokenizer, pictures


def networks(
    flags: argparse.Namespace, device: Any
) -> tuple[LPIPS | None, Extractor | None, dict[str, str]]:
    """LPIPS and the extractor, and what is left out because its network is missing."""
    left, lpips, extractor = {}, None, None
    if flags.lpips or pretrained.present("vgg16", flags.weights_dir):
        lpips = LPIPS(flags.weights_dir)
    else:
        left["lpips"] = missing("vgg16", flags.weights_dir)
    asked = flags.extractor is not None or flags.metrics is not None
    if asked or pretrained.present("inception", flags.weights_dir):
        extractor = load_extractor(flags.extractor or "inception", flags.weights_dir, device)
    else:
        left["rfid"] = missing("inception", flags.weights_dir)
    return lpips, extractor, left


def missing(key: str, weights_dir: str | None) -> str:
    name, folder = pretrained.FILES[key].name, pretrained.folder(weights_dir)
    return f"{name} is missing in {folder} (scripts/download_weights.py {key})"


def record_of(found: Evaluation, evaluator: Evaluator | None, source: str) -> dict[str, Any]:
    """Figures and what they depend on; the distance to the crops is the rFID."""
    if evaluator is None:
        return {"figures": found.means, "not_measured": {}, "warnings": [], "settings": {}}
    evaluator = replace(evaluator, reference=Reference.of(found.real, f"the crops of {source}"))
    record = evaluator.compare(found.fake, "reconstructions")
    figures = {
        f"r{name}" if name.startswith(("fid", "fd_")) else name: value
        for name, value in record["figures"].items()
    }
    return record | {"figures": found.means | figures}


def main() -> None:
    flags = build_parser().parse_intermixed_args()
    measures = read(MetricConfig, flags)
    with distributed.launch(flags.device) as process:
        tokenizer, pictures = open_source(flags)
        lpips, extractor, left = networks(flags, process.device)
        evaluator = None
        if extractor is not None:
            measures = replace(measures, metrics=measures.metrics or "fid")
            crops = Reference(pictures.source, len(pictures), {})
            evaluator = Evaluator(measures, extractor, crops, process)
            evaluator.check(pictures.source, len(pictures))
        tokenizer, start = tokenizer.to(process.device), time.perf_counter()
        given = (pictures, process, measures.loading, lpips, extractor)
        found = evaluate(tokenizer, *given)
        seconds = time.perf_counter() - start
        odd = pictures.replaced(process)
        if found is None:
            return
        record = record_of(found, evaluator, pictures.source)
        record["not_measured"] |= left
        record["warnings"] += odd
        record |= {
            "tokenizer": {"identity": identity(tokenizer), "file": str(flags.source)},
            "weights": "EMA where the file has them; the mean of the posterior; 8-bit images",
            "lpips": f"version 0.1 on {pretrained.FILES['vgg16'].name}" if lpips else None,
            "images": pictures.describe(),
            "processes": process.world,
            "seconds": seconds,
            "images_per_second": len(pictures) / seconds,
            "conditions": environment.describe(ROOT),
        }
        shown = extremes(found.order)
        rows = grid(tokenizer, pictures, shown, process.device)
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
