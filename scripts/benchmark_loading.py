"""Measure how fast pictures are read, and how many cores feed the GPUs of a machine.

    python scripts/benchmark_loading.py [--root FOLDER_OF_CLASS_FOLDERS] [--output FILE.json]

First, ways to read a picture and cut a square from it, on one core, and how far their pixels are
from Pillow's own; one of them is what training uses. Then training's own loader, at several numbers
of workers. Without --root the pictures are made here: JPEGs of 500 x 375 pixels and about 110 kB,
as ImageNet's are on average. They are read again and again, so from memory and not from a disk.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.nn.functional import interpolate

from common import images, seeding
from common import provenance as environment
from common.data.folders import list_folder
from common.data.loader import DataModule
from common.errors import UserError, run_cli
from common.panoramas.dataset import CLASS_NAMES, render
from common.records import write_json

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = 18  # pictures that one core reads again and again
WIDTH, HEIGHT, QUALITY = 500, 375, 90
ROUNDS = 5  # parts of a measurement, whose spread is shown
LINES = 50_000  # of the list that the loader reads, so that epochs do not end all the time

# Stage one at 256 pixels: 3 x 236.3 G multiply-adds for a picture (scripts/model_table.py; forward,
# and twice as much backward), at 40 % of the 989 TFLOP/s that an H100 makes in bfloat16. The frozen
# networks of the loss come on top, so this is more than such a GPU will want.
CONSUME = 280


# --- ways to read a picture: path, size → uint8 [3, size, size], the centre crop


def with_pillow(path: str, size: int, draft: bool = False) -> torch.Tensor:
    """All in Pillow; a `draft` comes from the JPEG decoder at 1/2, 1/4 or 1/8 if that is enough."""
    if draft:
        with Image.open(path) as opened:
            opened.draft("RGB", (size, size))
            picture = opened.convert("RGB")
    else:
        picture = images.read_rgb(path)
    height, width = covering(picture.height, picture.width, size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return images.crop(images.to_tensor(picture), size, size, None).contiguous()


def with_pillow_and_torch(path: str, size: int) -> torch.Tensor:
    """What the data sets do."""
    picture = images.resize_to_cover(images.read_rgb(path), size, size)
    return images.crop(picture, size, size, None).contiguous()


def with_torchvision(path: str, size: int) -> torch.Tensor:
    mode = torchvision.io.ImageReadMode.RGB
    picture = torchvision.io.decode_image(path, mode, apply_exif_orientation=True)
    shape = covering(*picture.shape[1:], size)
    picture = interpolate(picture[None], shape, mode="bicubic", antialias=True)[0]
    return images.crop(picture, size, size, None).contiguous()


def covering(height: int, width: int, size: int) -> tuple[int, int]:
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


WAYS: dict[str, Callable[[str, int], torch.Tensor]] = {
    "pillow": with_pillow,
    "pillow, draft": lambda path, size: with_pillow(path, size, draft=True),
    "pillow, torch resize (in use)": with_pillow_and_torch,
    "torchvision": with_torchvision,
}


# --- measuring


def one_core(paths: Sequence[str], size: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Rate of every way, and how many levels of 255 its pixels differ from Pillow's on average."""
    report: dict[str, dict[str, Any]] = {}
    for name, read in WAYS.items():
        try:
            levels = [(read(p, size).int() - with_pillow(p, size).int()).abs() for p in paths]
        except (RuntimeError, AttributeError) as error:
            # an installation without this decoder, or a kind of picture that it does not take
            report[name] = {"error": str(error).splitlines()[0]}
        else:
            report[name] = {"difference": torch.stack(levels).float().mean().item()}
    rounds: dict[str, list[float]] = {n: [] for n, entry in report.items() if "error" not in entry}
    for _ in range(ROUNDS):  # in turns, so that other work on the machine is unfair to none
        for name, rates in rounds.items():
            pictures = (WAYS[name](path, size)[None] for path in itertools.cycle(paths))
            rates.append(rate(pictures, seconds / ROUNDS))
    for name, rates in rounds.items():
        report[name] |= spread(rates)
    return report


def through_loader(node: dict, batch_size: int, workers: int, seconds: float) -> dict[str, float]:
    """The rate of training's loader, once all workers are at work."""
    data = DataModule(batch_size, node, num_workers=workers)
    data.setup("fit")
    loader = data.train_dataloader()

    def batches() -> Iterator[torch.Tensor]:
        for epoch in itertools.count():
            loader.sampler.set_epoch(epoch)
            for pictures, _ in loader:
                yield pictures

    endless = batches()
    for _ in range(2 * workers):  # what they have read ahead
        next(endless)
    return spread([rate(endless, seconds / ROUNDS) for _ in range(ROUNDS)])


def rate(batches: Iterator[torch.Tensor], seconds: float) -> float:
    """Pictures per second, from an endless iterator."""
    start, done, passed = time.perf_counter(), 0, 0.0
    while passed < seconds:
        done += len(next(batches))
        passed = time.perf_counter() - start
    return done / passed


def spread(rates: Sequence[float]) -> dict[str, float]:
    return {
        "images_per_s": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
    }


def cores_needed(loader: dict[str, dict], gpus: int, consume: float) -> dict[str, float]:
    """How many loading cores give `gpus` times `consume` pictures a second.

    A core gives what a worker gave where that was most, or without a worker, the process itself.
    """
    rates = {int(workers): entry["images_per_s"] for workers, entry in loader.items()}
    of_a_core = max([r / n for n, r in rates.items() if n] or rates.values())
    cores = math.ceil(gpus * consume / of_a_core)
    return {
        "gpus": gpus,
        "images_per_s_of_a_gpu": consume,
        "images_per_s": gpus * consume,
        "images_per_s_of_a_core": of_a_core,
        "cores": cores,
        "num_workers_of_a_gpu": math.ceil(cores / gpus),
    }


# --- pictures


def make_pictures(folder: Path) -> list[str]:
    """JPEGs with the size and the bytes of photographs: painted landscapes under film grain."""
    paths = []
    for k in range(SAMPLE):
        scene = render(CLASS_NAMES[k % len(CLASS_NAMES)], 0, k, 0, 256, 256 * WIDTH // HEIGHT)
        scene = np.asarray(Image.fromarray(scene).resize((WIDTH, HEIGHT)), dtype=np.float32)
        randomness = seeding.stream(0, "grain", k)
        grain = 22 * randomness.standard_normal((HEIGHT, WIDTH, 1))
        colour = 8 * randomness.standard_normal((HEIGHT, WIDTH, 3))
        pixels = (scene + grain + colour).clip(0, 255).astype(np.uint8)
        paths.append(str(folder / f"{k:03}.jpg"))
        Image.fromarray(pixels).save(paths[-1], quality=QUALITY)
    return paths


def describe(paths: Sequence[str]) -> dict[str, int]:
    sizes = [images.read_rgb(path).size for path in paths]
    return {
        "mean_bytes": round(statistics.mean(Path(path).stat().st_size for path in paths)),
        "mean_width": round(statistics.mean(width for width, _ in sizes)),
        "mean_height": round(statistics.mean(height for _, height in sizes)),
    }


# --- the command


def measure(flags: argparse.Namespace, counts: Sequence[int], folder: Path) -> dict[str, Any]:
    """The report; `folder` takes what must be written for it."""
    conditions = environment.describe(ROOT)
    torch.set_num_threads(1)  # as in a worker
    paths = list_folder(flags.root).paths if flags.root else make_pictures(folder)
    sample = paths[:: math.ceil(len(paths) / SAMPLE)]
    lines = itertools.islice(itertools.cycle(paths), max(LINES, len(paths)))
    text = "".join(f"{Path(path).absolute()} 0\n" for path in lines)
    (folder / "list.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
    params = {"file": str(folder / "list.txt"), "size": flags.size, "train": True}
    node = {"target": "common.data.lists.ImageList", "params": params}
    loader = {str(n): through_loader(node, flags.batch_size, n, flags.seconds) for n in counts}
    return {
        "conditions": conditions,
        "pictures": {"made": not flags.root, "count": len(paths), **describe(sample)},
        "size": flags.size,
        "batch_size": flags.batch_size,
        "seconds": flags.seconds,
        "one_core": one_core(sample, flags.size, flags.seconds),
        "loader": loader,
        "need": cores_needed(loader, flags.gpus, flags.consume),
    }


def show(report: dict[str, Any]) -> None:
    def line(name: str, entry: dict[str, Any]) -> str:
        between = f"{entry['slowest']:.0f}-{entry['fastest']:.0f}"
        return f"{name:34}{entry['images_per_s']:10.0f}{between:>14}"

    pictures, size, need = report["pictures"], report["size"], report["need"]
    print(
        f"{pictures['count']} pictures, on average {pictures['mean_width']} x "
        f"{pictures['mean_height']} pixels and {pictures['mean_bytes'] / 1000:.0f} kB, "
        f"to {size} x {size}"
    )
    print(f"\n{'on one core':34}{'images/s':>10}{'rounds':>14}{'levels from pillow':>20}")
    for name, entry in report["one_core"].items():
        if "error" in entry:
            print(f"{name:34}{entry['error']}")
        else:
            print(f"{line(name, entry)}{entry['difference']:20.3f}")
    print(f"\n{'loader: workers':34}{'images/s':>10}{'rounds':>14}")
    for workers, entry in report["loader"].items():
        print(line(workers, entry))
    print(
        f"\n{need['gpus']} GPUs x {need['images_per_s_of_a_gpu']:g} images/s "
        f"/ {need['images_per_s_of_a_core']:.0f} images/s of a core = {need['cores']} cores, "
        f"num_workers {need['num_workers_of_a_gpu']} for each GPU"
    )


def parse() -> tuple[argparse.Namespace, list[int]]:
    """The flags, and the numbers of workers."""
    cores = environment.cores()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, help="folder of class folders (default: pictures made here)")
    add("--size", type=int, default=256, help="of the square that is cut (default 256)")
    add("--workers", default=f"0,1,{cores}", help=f"of the loader (default 0,1,{cores})")
    add("--batch_size", type=int, default=32, help="of the loader (default 32)")
    add("--seconds", type=float, default=5, help="for each figure (default 5)")
    about = f"images/s of one GPU (default {CONSUME}: stage one on an H100 at 40 %% of its peak)"
    add("--consume", type=float, default=CONSUME, metavar="N", help=about)
    add("--gpus", type=int, default=8, help="to be fed (default 8)")
    add("--output", type=Path, metavar="FILE", help="write the figures there too, as JSON")
    flags = parser.parse_args()
    for name in ("size", "batch_size", "seconds", "consume", "gpus"):
        if getattr(flags, name) <= 0:
            raise UserError(f"--{name}: found {getattr(flags, name)}, expected more than 0")
    counts = flags.workers.split(",")
    if not all(count.isdecimal() for count in counts):
        raise UserError(f"--workers: found {flags.workers!r}, expected numbers such as 0,1,2,4")
    return flags, sorted({int(count) for count in counts})


def main() -> None:
    flags, counts = parse()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(flags, counts, Path(folder))
    show(report)
    if flags.output:
        write_json(flags.output, report)


if __name__ == "__main__":
    run_cli(main)
