"""Train both stages on the built-in panoramas, measure them, and show the result on one page.

    python scripts/quickstart.py            # into runs/quickstart, or on from where it stopped
    python scripts/quickstart.py --fresh    # from the beginning

Every training and drawing step is one of the scripts here, with a config of configs/quickstart/.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from quickstart_page import publish, save_loss_curves, summarise
from torch import Tensor
from tqdm import tqdm

from common import checkpoint, config, distributed, images, seeding
from common import provenance as environment
from common.errors import UserError, run_cli
from common.io import replacing
from common.metrics.pixel import psnr
from common.panoramas import classifier
from common.panoramas.dataset import CLASS_NAMES, Panoramas
from common.steps import Record, Step, remove, run_script
from tokenizer.analysis import token_meaning
from tokenizer.loading import load_tokenizer
from tokenizer.model import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "quickstart"
CONFIG_NAMES = ("tokenizer", "stage_two", "generator", "samples", "panoramas")
GENERATOR = "generator/checkpoint-last.pth"
CLASSES = len(CLASS_NAMES)


@dataclass(frozen=True)
class Plan:
    """How much is measured, and what is said to the scripts of steps beside their configs."""

    unseen: int = 540  # images to reconstruct, and to try the classifier on
    lessons: int = 1800  # images that it learns from,
    lesson_epochs: int = 4  # and how often it sees them
    arguments: Mapping[str, str] = field(default_factory=dict)


TINY = Plan(
    unseen=18,
    lessons=36,
    lesson_epochs=1,
    arguments={
        "tokenizer": """
            model.params.ddconfig.ch=8 model.params.ddconfig.z_channels=4
            data.params.train.params.length=64 data.params.validation.params.length=9
            lightning.trainer.max_epochs=1 lightning.trainer.precision=32-true
            lightning.trainer.log_every_n_steps=1
        """,
        "latents": "data.params.train.params.length=64",
        "generator": """
            --epochs 2 --batch_size 32 --width 32 --depth 2 --heads 2
            --diffloss_w 32 --diffloss_d 1 --log_freq 1
        """,
        "samples": "--num_images 18 --num_sampling_steps 4",
        "panoramas": "--num_sampling_steps 2",
    },
)


class Quickstart:
    """The steps, and what they share; `device` is for what is measured here."""

    def __init__(self, folder: Path, flags: argparse.Namespace, device: torch.device) -> None:
        self.folder, self.seed, self.device = folder, flags.seed, device
        self.device_name = flags.device
        self.plan = TINY if flags.tiny else Plan()
        self.files = {name: os.path.relpath(CONFIGS / f"{name}.yaml") for name in CONFIG_NAMES}
        self.configs = {name: config.load(file) for name, file in self.files.items()}
        self.settings = {"seed": flags.seed, "tiny": flags.tiny}
        for name, file in self.files.items():
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
            self.settings[f"configs/quickstart/{name}.yaml"] = digest
        self.unseen_seed = 1 + max(
            OmegaConf.select(self.configs[name], f"data.params.{part}.params.seed", default=0)
            for name in ("tokenizer", "stage_two")
            for part in ("train", "validation")
        )

    def steps(self) -> list[Step]:
        models = ("tokenizer", "generator")
        return [
            Step("tokenizer", self.train_tokenizer, ("tokenizer.ckpt", "logs")),
            Step("latents", self.cache_latents, ("latents.safetensors",), ("tokenizer",)),
            Step("generator", self.train_generator, (GENERATOR,), ("latents",)),
            Step("samples", lambda: self.draw("samples"), ("samples/images",), models),
            Step("panoramas", lambda: self.draw("panoramas"), ("panoramas/images",), models),
            Step("reconstructions", self.reconstruct, ("reconstructions.png",), ("tokenizer",)),
            Step("classifier", self.train_classifier, ("classifier.safetensors",), ("tokenizer",)),
            Step("agreement", self.measure, (), ("samples", "panoramas", "classifier")),
            Step("sample rows", self.show_samples, ("samples.png",), ("samples",)),
            Step("panorama strips", self.show_panoramas, ("panorama.png",), ("panoramas",)),
            Step("token meaning", self.show_tokens, ("token_meaning.gif",), ("tokenizer",)),
            Step("curves", lambda: save_loss_curves(self.folder), ("curves.png",), models),
        ]

    # The scripts, as a user would call them.

    def train_tokenizer(self) -> dict[str, Any]:
        logs, pattern = self.folder / "logs", "*_tokenizer/checkpoints/last.ckpt"
        where = ["-b", self.files["tokenizer"], "-n", "tokenizer", "-l", logs]
        if runs := list(logs.glob(pattern)):
            where = ["-r", max(runs).parents[1]]
        else:
            remove(logs)
        figures = self._script(
            "tokenizer",
            "train_tokenizer.py",
            *("-t", "True", "-s", self.seed, "--device", self.device_name, *where),
        )
        with replacing(self.folder / "tokenizer.ckpt") as file:
            file.write(max(logs.glob(pattern)).read_bytes())
        return figures

    def cache_latents(self) -> dict[str, Any]:
        path = self.folder / "latents.safetensors"
        return self._script(
            "latents", "cache_latents.py", *self._stage_two(), "--cached_path", path
        )

    def train_generator(self) -> dict[str, Any]:
        output = self.folder / "generator"
        resumes = (self.folder / GENERATOR).exists()
        if not resumes:
            remove(output)
        return self._script(
            "generator",
            "train_generator.py",
            *("--config", self.files["generator"], *self._stage_two(), "--use_cached"),
            *("--cached_path", self.folder / "latents.safetensors"),
            *("--output_dir", output, "--seed", self.seed),
            *(("--resume", output) if resumes else ()),
        )

    def draw(self, name: str) -> dict[str, Any]:
        return self._script(
            name,
            "eval_generator.py",
            *("--config", self.files[name], "--resume", self.folder / "generator"),
            *(*self._stage_two(), "--output_dir", self.folder / name, "--seed", self.seed),
        )

    def _stage_two(self) -> list[str]:
        weights = f"model.params.ckpt_path={self.folder / 'tokenizer.ckpt'}"
        return ["--config_path", self.files["stage_two"], weights, "--device", self.device_name]

    def _script(self, step: str, script: str, *arguments: object) -> dict[str, Any]:
        more = self.plan.arguments.get(step, "").split()
        return run_script(ROOT / "scripts" / script, *arguments, *more)

    # What is measured and shown.

    def reconstruct(self) -> dict[str, Any]:
        tokenizer = self._tokenizer()
        real, labels = self._unseen(tokenizer.height)
        fake, values = [], []
        with torch.inference_mode():
            for batch in tqdm(real.split(90), desc="reconstructing", unit="batch"):
                batch = images.to_float(batch.to(self.device))
                decoded = tokenizer.decode(tokenizer.encode(batch).mode())
                values.append(psnr(decoded, batch).cpu())
                fake.append(images.to_uint8(decoded).cpu())
        values, fake = torch.cat(values), torch.cat(fake)
        blocks = range(0, min(4 * CLASSES, len(real)), CLASSES)
        grid = [part[i : i + CLASSES] for i in blocks for part in (real, fake)]
        images.save_grid(self.folder / "reconstructions.png", torch.cat(grid), CLASSES)
        return {
            "psnr": values.mean().item(),
            "images": len(real),
            "data_seed": self.unseen_seed,
            "by_class": [values[labels == k].mean().item() for k in range(CLASSES)],
        }

    def train_classifier(self) -> dict[str, Any]:
        size, seed, plan = self._tokenizer().height, self.seed, self.plan
        lessons = Panoramas(plan.lessons, size, seed=self.unseen_seed + 1, cache=False)
        taught = classifier.all_of(tqdm(lessons, desc="lessons", unit="image"))
        with tqdm(desc="classifier", unit="step") as bar:
            model = classifier.train(
                *taught, CLASSES, seed, plan.lesson_epochs, device=self.device, on_step=bar.update
            )
        checkpoint.save_safetensors(self.folder / "classifier.safetensors", model.state_dict())
        return {
            **asdict(classifier.agreement(model, *self._unseen(size))),
            "trained_on": plan.lessons,
            "epochs": plan.lesson_epochs,
            "data_seed": self.unseen_seed + 1,
        }

    def measure(self) -> dict[str, Any]:
        path = self.folder / "classifier.safetensors"
        model = classifier.Classifier(CLASSES).to(self.device).eval()
        checkpoint.load_weights(model, checkpoint.load(path), path)
        samples, labels = self._drawn("samples")
        strips, classes = self._drawn("panoramas")
        size = strips.shape[2]
        crops = [classifier.far_crops(strip, size) for strip in strips]
        each = len(crops[0])
        near = classifier.agreement(model, samples, labels)
        far = classifier.agreement(model, torch.cat(crops), classes.repeat_interleave(each))
        return {
            "samples": asdict(near),
            "far_crops": {
                **asdict(far),
                "crop_size": size,
                "crops_of_a_strip": each,
                "first_pixel": strips.shape[3] - each * size,
                "strip_width": strips.shape[3],
                "strips": len(strips),
            },
        }

    def show_samples(self) -> None:
        self._show("samples", 10, "samples.png")

    def show_panoramas(self) -> None:
        self._show("panoramas", 1, "panorama.png")

    def show_tokens(self) -> None:
        tokenizer = self._tokenizer()
        image, _ = Panoramas(1, tokenizer.height, seed=self.unseen_seed)[0]
        length = image.shape[2] // tokenizer.column_width
        noise = seeding.normal(self.seed, "meaning", shape=(length, tokenizer.channels))
        frames = token_meaning(tokenizer, images.to_float(image), noise).cpu()
        frames = frames.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        hold = frames[-1:].expand(6, -1, -1, -1)
        images.save_gif(self.folder / "token_meaning.gif", torch.cat([frames, hold]), ms=250)

    def _show(self, name: str, most: int, file: str) -> None:
        """The drawn pictures, each class in a row of at most so many."""
        pictures, labels = self._drawn(name)
        columns = min(most, *labels.bincount().tolist())
        rows = [pictures[labels == k][:columns] for k in range(CLASSES)]
        images.save_grid(self.folder / file, torch.cat(rows), columns)

    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder / "tokenizer.ckpt").to(self.device)

    def _unseen(self, size: int) -> tuple[Tensor, Tensor]:
        return classifier.all_of(Panoramas(self.plan.unseen, size, seed=self.unseen_seed))

    def _drawn(self, name: str) -> tuple[Tensor, Tensor]:
        """Pictures [N, 3, H, W] that `eval_generator.py` drew, and their intended classes [N]."""
        files = sorted((self.folder / name / "images").glob("*.png"))
        pictures = [images.to_tensor(images.read_rgb(file)) for file in files]
        labels = [int(file.stem) % CLASSES for file in files]
        absent = [c for k, c in enumerate(CLASS_NAMES) if k not in labels]
        if absent:
            raise UserError(
                f"{self.files[name]}: num_images: found {len(files)} pictures and none of class "
                f"{absent[0]}, expected at least {CLASSES}"
            )
        return torch.stack(pictures), torch.tensor(labels)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/quickstart"), help="folder of the run")
    add("--fresh", action="store_true", help="remove an earlier run there and start over")
    add("--seed", type=int, default=0, help="of weights, order and noise (default 0)")
    add("--tiny", action="store_true", help="seconds instead of minutes: untrained, for tests")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main() -> None:
    flags = build_parser().parse_args()
    # so that a script that is running ends with the quickstart, and its seconds are kept
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = flags.output
    with distributed.launch(flags.device) as process:
        quickstart = Quickstart(folder, flags, process.device)
        record = Record(folder / "quickstart.json", quickstart.settings, quickstart.steps())
        record.prepare(flags.fresh, ("metrics.json", "report.html"))
        record.complete(environment.describe(ROOT))
    configs = {name: OmegaConf.to_container(found) for name, found in quickstart.configs.items()}
    publish(folder, summarise(record.entries, record.runs, record.settings, configs))


if __name__ == "__main__":
    run_cli(main)
