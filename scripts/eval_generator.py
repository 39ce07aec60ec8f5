"""Draw images with a trained generator, of any width, and measure them.

    python scripts/eval_generator.py --resume runs/generator --config_path TOKENIZER.yaml \\
        --output_dir runs/samples --num_images 90 --cfg 4
    torchrun --nproc_per_node=8 scripts/eval_generator.py ... --num_images 50000 --metrics \\
        --reference VIRTUAL_imagenet256_labeled.npz

Image k goes to OUTPUT/images/k.png. It is the same file for any number of processes, and the same
picture, to rounding, for any batch size. A run that was stopped goes on where it was. With
--metrics, OUTPUT/metrics.json says how good they are, and all that this depends on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common import distributed
from common import provenance as environment
from common.cli import add_flags, read
from common.data.latents import weights_hash
from common.errors import UserError, run_cli
from common.metrics.report import MetricConfig, open_evaluator, table
from common.records import claim_folder, write_json
from generator.drawn import draw_series
from generator.flags import Help, parse_with_config
from generator.inference import prepare
from generator.loading import load_generator
from generator.recipe import (
    add_image_flags,
    add_model_flags,
    add_sampling_flags,
    add_speed_flags,
    check_flags,
    recipe_of,
)
from generator.series import Series
from tokenizer.loading import identity, tokenizer_from_config

ROOT = Path(__file__).resolve().parents[1]
RECORD = "metrics.json"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--config", metavar="YAML", help="any of these flags; the command line wins"
    )
    add_model_flags(parser, raw=True)
    add_image_flags(parser, num_images=64)
    add_sampling_flags(parser)
    add_speed_flags(parser)
    add_flags(parser, MetricConfig)
    return parser


def main() -> None:
    flags = parse_with_config(build_parser())
    with distributed.launch(flags.device) as process:
        check_flags(flags)
        if flags.metrics is None and flags.reference:
            raise UserError("--reference: given without --metrics")
        source = flags.resume / flags.ckpt
        loaded = load_generator(source, flags, ema=not flags.raw)
        scale = loaded.scale(flags.vae_norm)
        tokenizer = tokenizer_from_config(flags.config_path, scale, flags.overrides)
        loaded.check_tokenizer(identity(tokenizer), source)
        recipe = recipe_of(flags, flags.cfg, loaded.columns, loaded.class_names, tokenizer)
        settings = {
            "generator": weights_hash(loaded.model.state_dict()),
            "tokenizer": identity(tokenizer),
            "token_scale": float(tokenizer.token_scale),
            "precision": flags.precision,
            **recipe.settings(),
        }
        series = Series(flags.output_dir / "images", flags.num_images, flags.eval_bsz)
        if flags.metrics is not None:
            evaluator = open_evaluator(read(MetricConfig, flags), process)
            evaluator.check(str(series.folder), series.count)
        model = prepare(loaded.model.to(process.device), flags.precision, flags.compile)
        tokenizer = tokenizer.to(process.device)
        if process.is_main:
            claim_folder(flags.output_dir, settings)
        distributed.barrier()

        start = time.perf_counter()
        drawn = draw_series(series, model, tokenizer, loaded.class_names, recipe, process)
        seconds = time.perf_counter() - start
        if process.is_main:
            print(f"images: {series.folder}")
            earlier = flags.output_dir / RECORD
            if drawn and flags.metrics is None and earlier.exists():
                print(f"{earlier}: is of fewer images; --metrics measures them all")
        if flags.metrics is not None:
            record = evaluator.evaluate(series.paths())
            if record is not None:
                speed = {"drawn": drawn, "seconds": seconds, "images_per_second": drawn / seconds}
                record["drawing"] = {**settings, "batch_size": flags.eval_bsz, **speed}
                write_json(
                    flags.output_dir / RECORD,
                    record | {"conditions": environment.describe(ROOT)},
                )
                print(table(record))


if __name__ == "__main__":
    run_cli(main)
