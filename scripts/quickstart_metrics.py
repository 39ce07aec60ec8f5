"""Measure what `make quickstart` trained: metrics.json, and the images of its report.

    python scripts/quickstart_metrics.py runs/quickstart

Reconstruction is measured on panoramas that no training has seen. A classifier that learns from
others tells which class it sees in the generated images, and in crops of the far end of the strips.
"""

import time
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from common import cli, images, provenance, seeding
from common.errors import run_cli
from common.io import write_json
from common.metrics.pixel import psnr
from common.panoramas import classifier
from common.panoramas.dataset import CLASS_NAMES, Panoramas
from tokenizer.analysis import replace_tokens
from tokenizer.checkpoints import load_tokenizer
from tokenizer.evaluate import reconstruct
from tokenizer.model import Tokenizer

Figure: TypeAlias = dict[str, Any]
CLASSES = len(CLASS_NAMES)
UNSEEN, LESSONS = 2, 3  # data seeds; training and validation have 0 and 1
AIMS = {"psnr": 24.0, "agreement": 0.85, "far_agreement": 0.80, "seconds": 900.0}
STEPS = ("tokenizer.ckpt", "latents.safetensors", "generator.done", "samples.done", "strips.done")


def panoramas(length: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, H, W] and their classes [N]."""
    pixels, labels = zip(*Panoramas(length, size, seed=seed), strict=True)
    return torch.stack(pixels), torch.tensor(labels)


def reconstruction(tokenizer: Tokenizer, real: Tensor, labels: Tensor, file: Path) -> Figure:
    """PSNR of reconstructions of images uint8 [N, 3, H, W], some of which `file` shows."""
    made = torch.cat([reconstruct(tokenizer, batch)[0] for batch in real.split(90)])
    found = psnr(images.to_float(made), images.to_float(real))
    rows = range(0, min(4 * CLASSES, len(real)), CLASSES)
    grid = [part[i : i + CLASSES] for i in rows for part in (real, made)]
    images.save_grid(file, torch.cat(grid), CLASSES)
    by_class = {name: found[labels == k].mean().item() for k, name in enumerate(CLASS_NAMES)}
    return {"value": found.mean().item(), "images": len(real), "by_class": by_class}


def generated(folder: Path, rows: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, H, W] in a folder and their classes [N]; a grid of them, at most so many a
    class, goes beside the folder."""
    files = sorted((folder / "images").glob("*.png"))
    labels = torch.tensor([int(file.stem) % CLASSES for file in files])
    pixels = torch.stack([images.to_tensor(images.read_rgb(file)) for file in files])
    columns = min(rows, int(labels.bincount(minlength=CLASSES).min()))
    shown = [pixels[labels == k][:columns] for k in range(CLASSES)]
    images.save_grid(folder.with_suffix(".png"), torch.cat(shown), columns)
    return pixels, labels


@torch.inference_mode()
def agreement(model: nn.Module, pixels: Tensor, labels: Tensor) -> Figure:
    """How many images the classifier names as they were meant, by class and in all."""
    named = torch.cat([model(images.to_float(x)).argmax(1) for x in pixels.split(256)])
    right, count = (x.bincount(minlength=CLASSES) for x in (labels[named == labels], labels))
    pairs = zip(CLASS_NAMES, right.tolist(), count.tolist(), strict=True)
    by_class = {name: {"right": r, "count": n} for name, r, n in pairs}
    totals = {"right": int(right.sum()), "count": len(labels)}
    return {"value": totals["right"] / len(labels), **totals, "by_class": by_class}


def main() -> None:
    parser = cli.new_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the quickstart")
    parser.add_argument("--unseen", type=int, default=540, help="images to reconstruct")
    parser.add_argument("--lessons", type=int, default=1800, help="images for the classifier")
    flags = cli.parse(parser)
    run, tokenizer = flags.run, load_tokenizer(flags.run / "tokenizer.ckpt")
    size = tokenizer.height
    unseen = panoramas(flags.unseen, size, UNSEEN)
    model = classifier.train(*panoramas(flags.lessons, size, LESSONS), CLASSES, seed=0)
    samples, labels = generated(run / "samples", 10)
    strips, kinds = generated(run / "strips", 1)
    # side by side from the right end, as many as the last quarter holds
    width, count = strips.shape[3], max(1, strips.shape[3] // 4 // size)
    crops = strips[..., width - count * size :].unfold(3, size, size).permute(0, 3, 1, 2, 4)
    far = agreement(model, crops.flatten(0, 1), kinds.repeat_interleave(count))
    far |= {"crop_size": size, "first_pixel": width - count * size, "strip_width": width}
    noise = seeding.normal(0, "meaning", shape=(size // tokenizer.column_width, tokenizer.channels))
    later = torch.ones(len(noise) + 1, len(noise), dtype=torch.bool).triu()  # in frame k, from k on
    frames = replace_tokens(tokenizer, images.to_float(unseen[0][0]), noise, later)
    frames = frames.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    frames = torch.cat([frames, frames[-1:].expand(6, -1, -1, -1)])  # the last one stays
    images.save_gif(run / "token_meaning.gif", frames, ms=250)
    figures: dict[str, Figure] = {
        "psnr": reconstruction(tokenizer, *unseen, run / "reconstructions.png"),
        "agreement": agreement(model, samples, labels),
        "far_agreement": far,
        "classifier_accuracy": {**agreement(model, *unseen), "lessons": flags.lessons},
    }
    # the steps are timed by the files that they leave
    dates = [*((run / name).stat().st_mtime for name in ("started", *STEPS)), time.time()]
    names = [*(name.partition(".")[0] for name in STEPS), "metrics"]
    parts = {name: round(b - a, 1) for name, a, b in zip(names, dates, dates[1:], strict=False)}
    figures["seconds"] = {"value": round(dates[-1] - dates[0], 1), "steps": parts}
    for name, aim in AIMS.items():
        value = figures[name]["value"]
        met = value <= aim if name == "seconds" else value >= aim
        figures[name] |= {"aim": aim, "met": met}
        print(f"{name:14}{value:10.3f}   aim {aim:g}: {'met' if met else 'missed'}")
    write_json(run / "metrics.json", {"figures": figures, "conditions": provenance.describe()})


if __name__ == "__main__":
    run_cli(main)
