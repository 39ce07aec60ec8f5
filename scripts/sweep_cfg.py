"""Find the guidance: figures of a few images against it, with averaged and with raw weights.

    python scripts/sweep_cfg.py --resume runs/generator --config_path TOKENIZER.yaml \\
        --reference statistics.npz --cfgs 1,2,3,4,5,7 --num_images 5000 --output_dir runs/sweep
    torchrun --nproc_per_node=8 scripts/sweep_cfg.py ...

Every point has a folder of its own, as scripts/eval_generator.py leaves it, and is not drawn or
measured again; OUTPUT/sweep.png and sweep.json show all of them. Few images tell which guidance is
best, but their distances are larger than those of many: the best one is measured with
eval_generator.py.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from common import distributed
from common import provenance as environment
from common.cli import add_flags, read
from common.data.latents import weights_hash
from common.errors import UserError, run_cli
from common.metrics.report import MetricConfig, open_evaluator
from common.plots import Panel, save_curves
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
WEIGHTS = {"ema": (True,), "raw": (False,), "both": (True, False)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--config", metavar="YAML", help="any of these flags; the command line wins"
    )
    add_model_flags(parser)
    add = parser.add_argument_group("sweep").add_argument
    add("--cfgs", default="1,2,3,4,5,6,7,8", help="guidance, separated by commas")
    add("--weights", default="both", choices=WEIGHTS, help="averaged, raw, or both")
    add_image_flags(parser, num_images=5000)
    add_sampling_flags(parser, cfg=False)
    add_speed_flags(parser)
    add_flags(parser, MetricConfig)
    return parser


def numbers(text: str) -> list[float]:
    """The guidances of --cfgs, ascending."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(value) for value in found):
        raise UserError(f"--cfgs: found {text!r}, expected numbers such as 1,2.5,4")
    return found


def kept(path: Path, count: int) -> dict[str, Any] | None:
    """The record of a point that was measured, if it was of so many images."""
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    return record if record["images"]["images"] == count else None


def show(points: dict[str, dict[float, dict[str, Any]]], count: int, path: Path) -> None:
    """A plot for each figure of `count` images: a curve for averaged and one for raw weights."""
    names = list(dict.fromkeys(n for c in points.values() for p in c.values() for n in p))
    panels = []
    for name in names:
        if not name.endswith(("_std", "_mean")):
            curves = {w: {cfg: p[name] for cfg, p in c.items()} for w, c in points.items()}
            title = f"{name.replace('_', ' ')} of {count} images"
            panels.append(Panel(title, curves, across="guidance"))
    save_curves(path, panels)


def main() -> None:
    flags = parse_with_config(build_parser())
    with distributed.launch(flags.device) as process:
        check_flags(flags)
        measures, cfgs = read(MetricConfig, flags), numbers(flags.cfgs)
        source = flags.resume / flags.ckpt
        evaluator = open_evaluator(measures, process)
        evaluator.check(str(flags.output_dir), flags.num_images)
        points: dict[str, dict[float, dict[str, Any]]] = {}
        for ema in WEIGHTS[flags.weights]:
            loaded = load_generator(source, flags, ema)
            scale = loaded.scale(flags.vae_norm)
            tokenizer = tokenizer_from_config(flags.config_path, scale, flags.overrides)
            loaded.check_tokenizer(identity(tokenizer), source)
            models = {
                "generator": weights_hash(loaded.model.state_dict()),
                "tokenizer": identity(tokenizer),
                "token_scale": float(tokenizer.token_scale),
                "precision": flags.precision,
            }
            recipes = {
                cfg: recipe_of(flags, cfg, loaded.columns, loaded.class_names, tokenizer)
                for cfg in cfgs
            }
            model = prepare(loaded.model.to(process.device), flags.precision, flags.compile)
            tokenizer = tokenizer.to(process.device)
            for cfg, recipe in recipes.items():
                kind = "averaged" if ema else "raw"
                folder = flags.output_dir / f"{kind}_cfg_{cfg:g}"
                settings = {**models, **recipe.settings()}
                judged = {
                    "metrics": flags.metrics,
                    "extractor": measures.extractor,
                    "reference": flags.reference,
                    "splits": measures.splits,
                }
                if process.is_main:
                    print(f"{kind} weights, guidance {cfg:g}")
                    claim_folder(folder, {**settings, **judged})
                distributed.barrier()
                record = kept(folder / "metrics.json", flags.num_images)
                if distributed.agreed(record is None):
                    series = Series(folder / "images", flags.num_images, flags.eval_bsz)
                    draw_series(series, model, tokenizer, loaded.class_names, recipe, process)
                    record = evaluator.evaluate(series.paths())
                if process.is_main:
                    record |= {"drawing": settings, "conditions": environment.describe(ROOT)}
                    write_json(folder / "metrics.json", record)
                    points.setdefault(kind, {})[cfg] = figures = record["figures"]
                    told = (f"{k} {v:.5g}" for k, v in figures.items() if v is not None)
                    print(f"  {', '.join(told)}")
                    write_json(flags.output_dir / "sweep.json", points)
                    show(points, flags.num_images, flags.output_dir / "sweep.png")
        if process.is_main:
            for text in record["warnings"]:
                print(f"warning: {text}")
            print(f"figures: {flags.output_dir / 'sweep.json'}, {flags.output_dir / 'sweep.png'}")


if __name__ == "__main__":
    run_cli(main)
