"""Train both stages on the built-in panoramas, measure them, and show the result on one page.

    python scripts/quickstart.py            # into runs/quickstart, or on from where it stopped
    python scripts/quickstart.py --fresh    # from the beginning

Every training and drawing step is one of the scripts here, with a config of configs/quickstart/.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from common import checkpoint, classifier, config, curves, distributed, environment, images, seeding
from common.errors import UserError, run_cli
from common.files import replacing
from common.metrics import psnr
from common.panoramas import CLASS_NAMES, Panoramas
from common.records import write_json
from common.report import Headline, Picture, Table, write_report
from tokenizer.loading import load_tokenizer
from tokenizer.meaning import token_meaning

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("tokenizer", "stage_two", "generator", "samples", "panoramas")
RECORD = "quickstart.json"
PAGES = ("metrics.json", "report.html")
AIMS = {"psnr": 24.0, "agreement": 0.85, "far_agreement": 0.80, "seconds": 900.0}


@dataclass(frozen=True)
class Plan:
    """Arguments after those of the configs, and how much is measured."""

    tokenizer: tuple[str, ...] = ()
    latents: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    panoramas: tuple[str, ...] = ()
    unseen: int = 540
    lessons: int = 1800
    lesson_epochs: int = 4


FULL = Plan()
TINY = Plan(
    tokenizer=(
        "model.params.ddconfig.ch=8",
        "model.params.ddconfig.z_channels=4",
        "data.params.train.params.length=64",
        "data.params.validation.params.length=9",
        "lightning.trainer.max_epochs=1",
        "lightning.trainer.precision=32-true",
        "lightning.trainer.log_every_n_steps=1",
    ),
    latents=("data.params.train.params.length=64",),
    generator=(
        *("--epochs", "2", "--batch_size", "32", "--width", "32", "--depth", "2", "--heads", "2"),
        *("--diffloss_w", "32", "--diffloss_d", "1", "--log_freq", "1"),
    ),
    samples=("--num_images", "18", "--num_sampling_steps", "4"),
    panoramas=("--num_sampling_steps", "2"),
    unseen=18,
    lessons=36,
    lesson_epochs=1,
)


@dataclass(frozen=True)
class Step:
    """A part of the quickstart that is done once.

    Args:
        name: of the step.
        run: does it, and returns what it measured.
        outputs: what it leaves in the folder of the run.
        needs: steps whose outputs it reads; when one of them is done again, so is this one.
    """

    name: str
    run: Callable[[], dict[str, Any] | None]
    outputs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Record:
    """What has been done in a folder: for each step its seconds, attempts and measured figures.

    Args:
        folder: of the run.
        settings: of this run; those of the folder must be the same.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / RECORD
        self.settings = settings
        self.steps: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []

    def read(self) -> None:
        try:
            found = json.loads(self.path.read_text())
            self.steps, self.runs = found["steps"], found["runs"]
            before = found["settings"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path}: damaged; expected the record of a quickstart. Use --fresh"
            ) from None
        for key, value in self.settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"{self.folder}: was made with {key} {before.get(key)}, found {value} now; "
                    "use --fresh, or another --output"
                )

    def write(self) -> None:
        write_json(self.path, {"settings": self.settings, "runs": self.runs, "steps": self.steps})

    def is_done(self, step: Step) -> bool:
        made = all((self.folder / output).exists() for output in step.outputs)
        return made and self.steps.get(step.name, {}).get("done", False)

    def discard(self, step: Step) -> None:
        """Forget a step and remove what it left."""
        for output in step.outputs:
            remove(self.folder / Path(output).parts[0])
        self.steps.pop(step.name, None)

    def carry_out(self, step: Step, steps: list[Step]) -> None:
        """Do a step, on from an attempt that was interrupted; later steps that need it are void."""
        if self.steps.get(step.name, {}).get("done"):
            self.discard(step)
        void = {step.name}
        for other in steps:
            if void & set(other.needs):
                void.add(other.name)
                self.discard(other)
        entry = self.steps.setdefault(step.name, {"seconds": 0.0, "attempts": 0, "done": False})
        entry["attempts"] += 1
        self.steps = {s.name: self.steps[s.name] for s in steps if s.name in self.steps}
        self.write()
        start = time.monotonic()
        try:
            entry["figures"] = step.run() or {}
            entry["done"] = True
        finally:
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - start, 2)
            self.write()

    def figures(self, name: str) -> dict[str, Any]:
        return self.steps[name]["figures"]


class Quickstart:
    """The steps, and what they share.

    Args:
        folder: of the run.
        flags: of the command line.
        device: for what is measured here.
    """

    def __init__(self, folder: Path, flags: argparse.Namespace, device: torch.device) -> None:
        self.folder, self.seed, self.device = folder, flags.seed, device
        self.device_name = flags.device
        self.plan = TINY if flags.tiny else FULL
        self.configs = {name: os.path.relpath(config_path(name)) for name in CONFIGS}
        self.unseen_seed = 1 + max(self._data_seeds())

    def steps(self) -> list[Step]:
        return [
            Step("tokenizer", self.train_tokenizer, ("tokenizer.ckpt", "logs")),
            Step("latents", self.cache_latents, ("latents.safetensors",), ("tokenizer",)),
            Step(
                "generator", self.train_generator, ("generator/checkpoint-last.pth",), ("latents",)
            ),
            Step(
                "samples",
                functools.partial(self.draw, "samples"),
                ("samples/images",),
                ("tokenizer", "generator"),
            ),
            Step(
                "panoramas",
                functools.partial(self.draw, "panoramas"),
                ("panoramas/images",),
                ("tokenizer", "generator"),
            ),
            Step("reconstructions", self.reconstruct, ("reconstructions.png",), ("tokenizer",)),
            Step("classifier", self.train_classifier, ("classifier.safetensors",), ("tokenizer",)),
            Step("agreement", self.measure, (), ("samples", "panoramas", "classifier")),
            Step("sample rows", self.show_samples, ("samples.png",), ("samples",)),
            Step("panorama strips", self.show_panoramas, ("panorama.png",), ("panoramas",)),
            Step("token meaning", self.show_tokens, ("token_meaning.gif",), ("tokenizer",)),
            Step("curves", self.show_curves, ("curves.png",), ("tokenizer", "generator")),
        ]

    # The scripts, as a user would call them.

    def train_tokenizer(self) -> dict[str, Any]:
        runs = [p.parents[1] for p in self.folder.glob("logs/*_tokenizer/checkpoints/last.ckpt")]
        arguments = ["-t", "True", "-s", str(self.seed), "--device", self.device_name]
        if runs:
            arguments += ["-r", str(max(runs))]
        else:
            remove(self.folder / "logs")
            arguments += ["-b", self.configs["tokenizer"], "-n", "tokenizer"]
            arguments += ["-l", str(self.folder / "logs"), *self.plan.tokenizer]
        figures = self._script("train_tokenizer.py", *arguments)
        last = max(self.folder.glob("logs/*_tokenizer/checkpoints/last.ckpt"))
        with open(last, "rb") as source, replacing(self.folder / "tokenizer.ckpt") as file:
            shutil.copyfileobj(source, file)
        return figures

    def cache_latents(self) -> dict[str, Any]:
        path = str(self.folder / "latents.safetensors")
        return self._script(
            "cache_latents.py", *self._stage_two(), "--cached_path", path, *self.plan.latents
        )

    def train_generator(self) -> dict[str, Any]:
        output = self.folder / "generator"
        resume = []
        if (output / "checkpoint-last.pth").exists():
            resume = ["--resume", str(output)]
        else:
            remove(output)
        return self._script(
            "train_generator.py",
            *("--config", self.configs["generator"], *self._stage_two(), "--use_cached"),
            *("--cached_path", str(self.folder / "latents.safetensors")),
            *("--output_dir", str(output), "--seed", str(self.seed)),
            *(*resume, *self.plan.generator),
        )

    def draw(self, name: str) -> dict[str, Any]:
        return self._script(
            "eval_generator.py",
            *("--config", self.configs[name], "--resume", str(self.folder / "generator")),
            *(*self._stage_two(), "--output_dir", str(self.folder / name)),
            *("--seed", str(self.seed), *getattr(self.plan, name)),
        )

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
        classes = len(CLASS_NAMES)
        blocks = range(0, min(4 * classes, len(real)), classes)
        grid = [part[i : i + classes] for i in blocks for part in (real, fake)]
        images.save_grid(self.folder / "reconstructions.png", torch.cat(grid), classes)
        return {
            "psnr": values.mean().item(),
            "images": len(real),
            "data_seed": self.unseen_seed,
            "by_class": [values[labels == k].mean().item() for k in range(classes)],
        }

    def train_classifier(self) -> dict[str, Any]:
        size, plan = self._tokenizer().height, self.plan
        lessons = Panoramas(plan.lessons, size, seed=self.unseen_seed + 1, cache=False)
        pictures, labels = classifier.all_of(tqdm(lessons, desc="lessons", unit="image"))
        with tqdm(desc="classifier", unit="step") as bar:
            model = classifier.train(
                pictures,
                labels,
                len(CLASS_NAMES),
                self.seed,
                plan.lesson_epochs,
                device=self.device,
                on_step=bar.update,
            )
        result = classifier.agreement(model, *self._unseen(size))
        checkpoint.save_safetensors(self.folder / "classifier.safetensors", model.state_dict())
        return {
            "accuracy": result.share,
            "right": result.right,
            "count": result.count,
            "trained_on": plan.lessons,
            "epochs": plan.lesson_epochs,
            "data_seed": self.unseen_seed + 1,
        }

    def measure(self) -> dict[str, Any]:
        path = self.folder / "classifier.safetensors"
        model = classifier.Classifier(len(CLASS_NAMES)).to(self.device).eval()
        checkpoint.load_weights(model, checkpoint.load(path), path)
        samples, labels = self._drawn("samples")
        strips, classes = self._drawn("panoramas")
        size = strips.shape[2]
        crops = [classifier.far_crops(strip, size) for strip in strips]
        each = len(crops[0])
        near = classifier.agreement(model, samples, labels)
        far = classifier.agreement(model, torch.cat(crops), classes.repeat_interleave(each))
        return {
            "samples": {"share": near.share, "right": near.right, "count": near.count},
            "far_crops": {
                "share": far.share,
                "right": far.right,
                "count": far.count,
                "crop_size": size,
                "crops_of_a_strip": each,
                "first_pixel": strips.shape[3] - each * size,
                "strip_width": strips.shape[3],
                "strips": len(strips),
            },
        }

    def show_samples(self) -> None:
        pictures, labels = self._drawn("samples")
        rows = [pictures[labels == k][:10] for k in range(len(CLASS_NAMES))]
        columns = min(map(len, rows))
        rows = torch.cat([row[:columns] for row in rows])
        images.save_grid(self.folder / "samples.png", rows, columns)

    def show_panoramas(self) -> None:
        strips, labels = self._drawn("panoramas")
        first = torch.stack([strips[labels == k][0] for k in range(len(CLASS_NAMES))])
        images.save_grid(self.folder / "panorama.png", first, columns=1)

    def show_tokens(self) -> None:
        tokenizer = self._tokenizer()
        image, _ = Panoramas(1, tokenizer.height, seed=self.unseen_seed)[0]
        length = image.shape[2] // tokenizer.column_width
        noise = seeding.normal(self.seed, "meaning", shape=(length, tokenizer.channels))
        frames = token_meaning(tokenizer, images.to_float(image), noise).cpu()
        frames = frames.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        hold = frames[-1:].expand(6, -1, -1, -1)
        images.save_gif(self.folder / "token_meaning.gif", torch.cat([frames, hold]), ms=250)

    def show_curves(self) -> None:
        files = sorted(
            self.folder.glob("logs/*_tokenizer/csv/version_*/metrics.csv"),
            key=lambda p: (p.parts[-4], int(p.parent.name.removeprefix("version_"))),
        )
        log = self.folder / "generator" / "metrics.csv"
        first, second = curves.read_wide(files), curves.read_long(log)
        by_column = {
            name.removeprefix("columns/loss_"): series
            for name, series in second.items()
            if name.startswith("columns/loss_")
        }
        loss = curves.pick(first, "train/rec", files[0])
        fidelity = curves.pick(first, "val/psnr", files[0])
        flow = curves.pick(second, "train/loss", log)
        panels = [
            curves.Panel("Tokenizer: reconstruction loss", {"rec": loss}, log=True),
            curves.Panel("Tokenizer: PSNR in validation [dB]", {"psnr": fidelity}),
            curves.Panel("Generator: flow loss", {"loss": flow}),
            curves.Panel("Generator: flow loss of each column", by_column),
        ]
        curves.save_curves(self.folder / "curves.png", panels)

    # Parts of the steps.

    def _stage_two(self) -> list[str]:
        weights = f"model.params.ckpt_path={self.folder / 'tokenizer.ckpt'}"
        return ["--config_path", self.configs["stage_two"], weights, "--device", self.device_name]

    def _script(self, name: str, *arguments: str) -> dict[str, Any]:
        command = [os.path.relpath(ROOT / "scripts" / name), *arguments]
        print(f"$ python {shlex.join(command)}", flush=True)
        code = subprocess.run([sys.executable, *command]).returncode
        if code:
            raise ScriptFailed(name, code)
        return {"command": f"python {shlex.join(command)}"}

    def _data_seeds(self) -> list[int]:
        """Of all panoramas that a training sees."""
        return [
            OmegaConf.select(config.load(self.configs[name]), key, default=0)
            for name in ("tokenizer", "stage_two")
            for key in ("data.params.train.params.seed", "data.params.validation.params.seed")
        ]

    def _tokenizer(self):
        return load_tokenizer(self.folder / "tokenizer.ckpt").to(self.device)

    def _unseen(self, size: int) -> tuple[Tensor, Tensor]:
        return classifier.all_of(Panoramas(self.plan.unseen, size, seed=self.unseen_seed))

    def _drawn(self, name: str) -> tuple[Tensor, Tensor]:
        """Pictures [N, 3, H, W] that `eval_generator.py` drew, and their intended classes [N]."""
        files = sorted((self.folder / name / "images").glob("*.png"))
        pictures = [images.to_tensor(images.read_rgb(file)) for file in files]
        labels = [int(file.stem) % len(CLASS_NAMES) for file in files]
        absent = [c for k, c in enumerate(CLASS_NAMES) if k not in labels]
        if absent:
            raise UserError(
                f"{self.configs[name]}: num_images: found {len(files)} pictures and none of class "
                f"{absent[0]}, expected at least {len(CLASS_NAMES)}"
            )
        return torch.stack(pictures), torch.tensor(labels)


class ScriptFailed(Exception):
    """A script ended with a code other than 0."""

    def __init__(self, script: str, code: int) -> None:
        super().__init__(f"scripts/{script} ended with exit code {code}")
        self.code = code if code > 0 else 128 - code


def config_path(name: str) -> Path:
    return ROOT / "configs" / "quickstart" / f"{name}.yaml"


def remove(path: Path) -> None:
    """Remove a file, a folder with what is in it, or a link but not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def settings(flags: argparse.Namespace) -> dict[str, Any]:
    """What a folder's results depend on; a run with other settings must not go on with them."""
    digests = {}
    for name in CONFIGS:
        config.load(config_path(name))  # a missing or damaged file is told before anything runs
        digest = hashlib.sha256(config_path(name).read_bytes()).hexdigest()[:12]
        digests[f"configs/quickstart/{name}.yaml"] = digest
    return {"seed": flags.seed, "tiny": flags.tiny, **digests}


def prepare(folder: Path, record: Record, steps: list[Step], fresh: bool) -> None:
    """Find out whether to go on or to begin, and say so.

    Raises:
        UserError: the folder holds something else than a quickstart, or one of other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: {folder} is a file, expected a folder")
    if folder.is_dir() and any(folder.iterdir()) and not record.path.exists():
        raise UserError(
            f"--output: {folder} is not empty, and no {RECORD} in it says that a quickstart made "
            "it; expected a new folder"
        )
    if fresh and record.path.exists():
        for output in (*(o for step in steps for o in step.outputs), *PAGES, RECORD):
            remove(folder / Path(output).parts[0])
    if not record.path.exists():
        record.write()
        print(f"Starting afresh in {folder}.", flush=True)
        return
    record.read()
    done = [step.name for step in steps if record.is_done(step)]
    if len(done) == len(steps):
        print(f"Resuming {folder}: all steps are done; only the report is written again.")
    else:
        left = f"done: {', '.join(done)}" if done else "no step is done yet"
        print(f"Resuming {folder}; {left}. --fresh starts over.", flush=True)


def summarise(record: Record) -> dict[str, Any]:
    """Everything that was measured, with its conditions: the content of metrics.json."""
    fidelity, judge = record.figures("reconstructions"), record.figures("classifier")
    drawn = record.figures("agreement")
    seconds = {name: step["seconds"] for name, step in record.steps.items()}
    measured = {
        "psnr": {
            "value": round(fidelity["psnr"], 3),
            "unit": "dB, mean over images",
            "images": fidelity["images"],
            "data_seed": fidelity["data_seed"],
            "by_class": _by_class(round(v, 3) for v in fidelity["by_class"]),
        },
        "agreement": _agreement(drawn["samples"]),
        "far_agreement": _agreement(drawn["far_crops"]),
        "classifier_accuracy": {
            **_agreement(judge),
            "data_seed": fidelity["data_seed"],
            "trained_on": judge["trained_on"],
            "epochs": judge["epochs"],
            "trained_on_data_seed": judge["data_seed"],
        },
        "seconds": {"value": round(sum(seconds.values()), 1), "unit": "s, all steps"},
    }
    for name, aim in AIMS.items():
        value = measured[name]["value"]
        met = value <= aim if name == "seconds" else value >= aim
        measured[name] |= {"aim": aim, "met": met}
    return {
        "figures": measured,
        "seconds": seconds,
        "attempts": {name: step["attempts"] for name, step in record.steps.items()},
        "resumed": len(record.runs) > 1,
        "runs": record.runs,
        "settings": record.settings,
        "configs": {
            name: OmegaConf.to_container(config.load(config_path(name))) for name in CONFIGS
        },
        "commands": [
            step["figures"]["command"]
            for step in record.steps.values()
            if "command" in step["figures"]
        ],
    }


def _agreement(counted: dict[str, Any]) -> dict[str, Any]:
    """Right answers of a classifier, for metrics.json."""
    lists = {"right": counted["right"], "count": counted["count"]}
    known = {"share", "accuracy", *lists}
    return {
        "value": round(sum(counted["right"]) / sum(counted["count"]), 4),
        "unit": "share of images",
        **{name: sum(values) for name, values in lists.items()},
        "by_class": _by_class(
            {"right": r, "count": n} for r, n in zip(*lists.values(), strict=True)
        ),
        **{k: v for k, v in counted.items() if k not in known},
    }


def _by_class(values: Any) -> dict[str, Any]:
    return dict(zip(CLASS_NAMES, values, strict=True))


def headlines(metrics: dict[str, Any]) -> list[Headline]:
    """The four figures that have an aim."""
    figures, machine = metrics["figures"], metrics["runs"][-1]
    fidelity, near, far, judge, seconds = (
        figures[k] for k in ("psnr", "agreement", "far_agreement", "classifier_accuracy", "seconds")
    )
    crops = (
        f"{far['count']} crops of {far['crop_size']} pixels, cut from {far['strips']} strips at "
        f"pixel {far['first_pixel']} and beyond"
    )
    device = machine["gpus"][0] if machine["gpus"] else machine["processor"]
    return [
        Headline(
            "Reconstruction",
            f"{fidelity['value']:.2f} dB",
            f"Mean PSNR of {fidelity['images']} panoramas never seen in training.",
            f"at least {fidelity['aim']:g} dB",
            fidelity["met"],
        ),
        Headline(
            "Class agreement",
            f"{near['value']:.1%}",
            f"{near['right']} of {near['count']} generated images are taken for their class by a "
            f"classifier that names {judge['value']:.1%} of {judge['count']} unseen real ones.",
            f"at least {near['aim']:.0%}",
            near["met"],
        ),
        Headline(
            "Far end of the panoramas",
            f"{far['value']:.1%}",
            f"The same for {far['right']} of {crops}.",
            f"at least {far['aim']:.0%}",
            far["met"],
        ),
        Headline(
            "Time",
            f"{seconds['value'] / 60:.1f} min",
            f"All steps together, on {machine['cores']} cores of {device}.",
            f"at most {seconds['aim'] / 60:.0f} min",
            seconds["met"],
        ),
    ]


def sections(folder: Path, metrics: dict[str, Any]) -> list[Picture | Table]:
    """Pictures and tables of the page."""
    figures, machine = metrics["figures"], metrics["runs"][-1]
    far = figures["far_agreement"]
    by_class = [figures[k]["by_class"] for k in ("psnr", "agreement", "far_agreement")]
    real = figures["classifier_accuracy"]["by_class"]
    return [
        Picture(
            folder / "samples.png",
            "Generated images",
            "Each row is one class, each image drawn column by column from left to right.",
            CLASS_NAMES,
        ),
        Picture(
            folder / "panorama.png",
            "Generated panoramas",
            f"One strip a class, {far['strip_width']} pixels wide: the generator, which has only "
            "seen squares in training, goes on drawing columns.",
            CLASS_NAMES,
        ),
        Picture(
            folder / "token_meaning.gif",
            "What a token means",
            "Random tokens are replaced one by one, from left to right, by those of a real image: "
            "what changes between two frames is what one token stands for.",
        ),
        Picture(
            folder / "reconstructions.png",
            "Reconstructions",
            "Panoramas never seen in training, each row of originals above what the tokenizer "
            "makes of their tokens.",
        ),
        Picture(
            folder / "curves.png",
            "Loss curves",
            "Training of both stages, thin lines single values, thick ones running means; in the "
            "last plot, the closer the lines, the more alike the tasks of predicting a column.",
            zoom=0,
            chart=True,
        ),
        Table(
            "By class",
            "Images that the classifier names as intended, of all images of the class.",
            ("Class", "PSNR of reconstructions", "Generated", "Far crops", "Real, unseen"),
            [
                (name, f"{psnr:.2f} dB", *(f"{x['right']} / {x['count']}" for x in counts))
                for name, psnr, *counts in zip(
                    CLASS_NAMES, *(d.values() for d in (*by_class, real)), strict=True
                )
            ],
        ),
        Table(
            "Seconds",
            "Time of each step, its attempts added up."
            + (" This run was resumed." if metrics["resumed"] else ""),
            ("Step", "Seconds", "Attempts"),
            [(k, f"{v:.1f}", str(metrics["attempts"][k])) for k, v in metrics["seconds"].items()],
        ),
        Table(
            "Commands",
            "The steps that are scripts of their own, as they were called.",
            ("", "Command"),
            [(str(i), command) for i, command in enumerate(metrics["commands"], 1)],
            words=True,
        ),
        Table(
            "Conditions",
            "What the numbers of this page were measured with; metrics.json has the configs too.",
            ("", "Value"),
            [
                *((k, str(v)) for k, v in metrics["settings"].items()),
                *((k, ", ".join(v) if isinstance(v, list) else str(v)) for k, v in machine.items()),
            ],
            words=True,
        ),
    ]


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
    record = Record(folder, settings(flags))
    with distributed.launch(flags.device) as process:
        quickstart = Quickstart(folder, flags, process.device)
        steps = quickstart.steps()
        prepare(folder, record, steps, flags.fresh)
        left = [step for step in steps if not record.is_done(step)]
        if left:
            record.runs.append(environment.describe(ROOT))
        for number, step in enumerate(steps, 1):
            if record.is_done(step):
                continue
            print(f"\n[{number}/{len(steps)}] {step.name}", flush=True)
            try:
                record.carry_out(step, steps)
            except ScriptFailed as error:
                print(f"error: step {step.name!r}: {error}; see above", file=sys.stderr)
                sys.exit(error.code)

    metrics = summarise(record)
    write_json(folder / "metrics.json", metrics)
    shown = headlines(metrics)
    lead = "Both stages trained on built-in panoramas, measured, and asked to draw."
    if flags.tiny:
        lead += " This was a run with --tiny: hardly trained, its figures say nothing."
    write_report(folder / "report.html", "Quickstart", lead, shown, sections(folder, metrics))
    print()
    for headline in shown:
        verdict = "met" if headline.met else "missed"
        print(f"{headline.name}: {headline.value} (aim: {headline.aim}, {verdict})")
        print(f"    {headline.note}")
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
