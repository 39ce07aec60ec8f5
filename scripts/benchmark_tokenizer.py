"""Measure how fast stage one trains, what an update's time goes into, and what bounds it.

    python scripts/benchmark_tokenizer.py -b CONFIG.yaml [key=value ...] [--output FILE.json]

Takes the configs and overrides of train_tokenizer.py. All terms that the config has are active
from the first update on, whatever their start step. Whole updates are those of Lightning's own
loop in one process, with the same pictures again and again. Their parts are measured afterwards,
waiting for the device around each:

* the autoencoder forward, and backward from given gradients of what it made;
* each frozen network: its passes again, as often as the terms ask for them forward and backward,
  also for the adaptive weight;
* the discriminator, without its frozen network: what its term, the adaptive weight and its own loss
  add to the other terms;
* both optimizers, with clipping, and EMA.

The rest is what the parts leave of a whole update: Lightning's loop, pictures on their way to the
device, the last convolution's gradients for the adaptive weight; less what the waiting costs the
parts, so that it can be negative.

FLOPs are those of convolutions, matrix products and attention, recomputed ones included; the peak
is that of a matrix product in the same precision, measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchvision.models import vgg16

from common import checkpoint, config, distributed, peak, seeding
from common import provenance as environment
from common.data.loader import DataModule
from common.errors import UserError, run_cli
from common.precision import uses_bf16
from common.pretrained.files import FILES
from common.records import write_json
from tokenizer import settings
from tokenizer.lightning import TokenizerModule
from tokenizer.losses.objective import Objective
from tokenizer.parts import COST, THRESHOLDS, time_training
from tokenizer.run import build_module, trainer_options
from tokenizer.settings import PRECISIONS, speed_overrides
from tokenizer.trainer import quieten

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"32-true": torch.float32, "32": torch.float32, "bf16-mixed": torch.bfloat16}
SPEED = ("precision", "benchmark", "deterministic")  # what a trainer has that changes the speed
LABELS = {
    "autoencoder_forward": "autoencoder, forward",
    "autoencoder_backward": "autoencoder, backward",
    "lpips": "frozen: LPIPS",
    "alignment": "frozen: DINOv2 of the alignment",
    "dino_trunk": "frozen: DINO of the discriminator",
    "discriminator": "discriminator",
    "other_terms": "other terms (pixels, KL, ...)",
    "optimizers_and_ema": "optimizers and EMA",
    "rest": "rest",
    "whole": "whole update",
}


# --- pictures and networks


def from_data_set(node: DictConfig, seed: int, updates: int) -> tuple[Tensor, dict[str, Any]]:
    """A batch of training's own loader, and how fast that loader is alone.

    Raises:
        UserError: the pictures cannot be read, or a mistake in `data`.
    """
    data: DataModule = config.instantiate(node, "data", seed=seed)
    data.nodes = {"train": data.nodes["train"]}
    data.setup("fit")
    loader = data.train_dataloader()

    def batches() -> Iterator[Tensor]:
        for epoch in itertools.count():
            loader.sampler.set_epoch(epoch)
            for pictures, _ in loader:
                yield pictures

    endless = batches()
    for _ in range(2 * data.num_workers + 1):  # what the workers have read ahead
        pictures = next(endless)
    count = max(updates, 4 * data.num_workers)  # they deliver in bursts
    start = time.perf_counter()
    for _ in range(count):
        next(endless)
    rate = count * len(pictures) / (time.perf_counter() - start)
    return pictures, {"images_per_s": rate, "num_workers": data.num_workers}


def made_up(node: DictConfig, height: int, seed: int) -> Tensor:
    """Noise of the size that the config asks for, uint8 [B, 3, H, W]."""
    batch_size = OmegaConf.select(node, "params.batch_size")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"data.params.batch_size: found {batch_size!r}, expected at least 1")
    width = OmegaConf.select(node, "params.train.params.width") or height
    shape = (batch_size, 3, height, width)
    return torch.from_numpy(seeding.stream(seed, "pictures").integers(0, 256, shape, "uint8"))


def make_weights(folder: Path, params: DictConfig | None) -> None:
    """Files of the frozen networks that an objective of these params takes, random weights in."""
    asked = {name: p.default for name, p in signature(Objective).parameters.items()}
    asked |= params or {}
    if asked["perceptual_weight"]:
        with torch.device("meta"):  # the classifier beside the features is large
            features = vgg16(weights=None, init_weights=False).features
        for layer in features.to_empty(device="cpu"):
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        weights = {f"features.{k}": v for k, v in features.state_dict().items()}
        checkpoint.save(folder / FILES["vgg16"].name, weights)
    transformers = {"dino": asked["disc_type"] == "dino", "dinov2": asked["semantic_loss_w"]}
    for key in [key for key, wanted in transformers.items() if wanted]:
        import timm  # takes seconds

        network = timm.create_model(FILES[key].timm, num_classes=0, weight_init="skip")
        checkpoint.save_safetensors(folder / FILES[key].name, network.state_dict())


# --- the report


def measure(flags: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """The report; `folder` takes random weights."""
    conditions = environment.describe(ROOT)
    told = read(flags, device)
    options = told.lightning.trainer
    dtype = DTYPES.get(str(options.precision))
    if dtype is None:
        raise UserError(
            f"lightning.trainer.precision: found {options.precision!r}, expected one of "
            f"{', '.join(DTYPES)}"
        )
    seeding.seed_everything(told.seed)
    module = build(told, flags, folder)
    loading, reason = None, "--no_loading"
    if not flags.no_loading:
        try:
            pictures, loading = from_data_set(told.data, told.seed, flags.updates)
        except UserError as error:
            if str(error).startswith("data."):  # a mistake in the config rather than no files
                raise
            reason = str(error)
    if loading is None:
        pictures = made_up(told.data, module.tokenizer.height, told.seed)
    speed = {k: options[k] for k in SPEED if k in options}
    done = time_training(module, pictures, speed, device, flags.warmup, flags.updates)

    on_gpu = device.type == "cuda"
    tf32 = on_gpu and dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    flop_rate, bandwidth = peak.matmul_rate(device, dtype, tf32), peak.memory_bandwidth(device)
    seconds, flops, traffic = done.whole.tolist()
    count = len(pictures) * module.accumulate
    shares = peak.Shares(
        flops / flop_rate / seconds,
        traffic / bandwidth / seconds,
        done.parts.launching if on_gpu else None,
    )
    report = {
        "conditions": conditions,
        "settings": OmegaConf.to_container(told, resolve=True),
        "seed": told.seed,
        "device": conditions["gpus"][device.index] if on_gpu else conditions["processor"],
        "on_gpu": on_gpu,
        "precision": str(options.precision),
        "tf32": tf32,
        "random_weights": flags.random_weights,
        "pictures": {"shape": list(pictures.shape), "made_up": loading is None},
        "accumulate": module.accumulate,
        "warmup": flags.warmup,
        "terms": done.parts.active,
        "images_per_s": count / seconds,
        "slowest": count / max(done.seconds),
        "fastest": count / min(done.seconds),
        "seconds": done.seconds,
        "whole": dict(zip(COST, done.whole.tolist(), strict=True)),
        "split": {k: dict(zip(COST, v.tolist(), strict=True)) for k, v in done.split.items()},
        "peak_memory": done.peak_memory,
        "peak": {"flops_per_s": flop_rate, "bytes_per_s": bandwidth},
        "shares": asdict(shares),
        "loading": loading or {"left_out": reason},
    }
    return report | conclusion(report["images_per_s"], report["loading"], shares)


def conclusion(rate: float, loading: dict[str, Any], shares: peak.Shares) -> dict[str, Any]:
    """What keeps training from being faster: `bound`, in a word, and `words`, in sentences."""
    if "left_out" in loading:
        return {
            "bound": shares.bound,
            "words": [f"Loading left out: {loading['left_out']}", str(shares)],
        }
    given, workers = loading["images_per_s"], loading["num_workers"]
    keeps_up = given >= rate
    words = (
        f"Loading {'keeps up' if keeps_up else 'does not keep up'}: alone, with num_workers "
        f"{workers}, it delivers {given:.4g} images/s of the {rate:.4g} that updates take."
    )
    return {"bound": shares.bound if keeps_up else "loading", "words": [words, f"{shares}"]}


def show(report: dict[str, Any]) -> None:
    whole, rate = report["whole"], report["peak"]["flops_per_s"]
    pictures = " x ".join(map(str, report["pictures"]["shape"]))
    pictures += ", made up" if report["pictures"]["made_up"] else ""
    pictures += f", {report['accumulate']} batches an update" if report["accumulate"] > 1 else ""
    tf32 = ", TF32 in convolutions" if report["tf32"] else ""
    print(f"{report['device']}, precision {report['precision']}{tf32}")
    print(f"pictures {pictures}")
    print(f"terms, whatever their start step: {', '.join(report['terms'])}")
    print(
        f"\n{report['images_per_s']:.4g} images/s ({report['slowest']:.4g}-"
        f"{report['fastest']:.4g} in {len(report['seconds'])} updates)"
    )
    print(f"\n{'':36}{'ms':>10}{'share':>8}{'GFLOP':>12}{'GFLOP/s':>12}{'of peak':>9}")
    for name, cost in [*report["split"].items(), ("whole", whole)]:
        seconds, flops = cost["seconds"], cost["flops"]
        line = f"{LABELS[name]:36}{1e3 * seconds:10.2f}{seconds / whole['seconds']:8.1%}"
        if flops and name != "rest":
            reached = flops / seconds
            line += f"{flops / 1e9:12.4g}{reached / 1e9:12.4g}{reached / rate:9.1%}"
        print(line)
    print(
        f"\npeaks, measured: {rate / 1e9:.4g} GFLOP/s in a product of matrices, "
        f"{report['peak']['bytes_per_s'] / 1e9:.4g} GB/s in a copy"
    )
    of = "tensors on the GPU, in updates" if report["on_gpu"] else "the process, from its start"
    print(f"most memory: {report['peak_memory'] / 2**20:.0f} MiB ({of})\n")
    print("\n".join(report["words"]))


# --- the command


def read(flags: argparse.Namespace, device: torch.device) -> DictConfig:
    """The configuration, with what the flags say."""
    precision = PRECISIONS.get(flags.precision)
    if flags.precision == "auto":
        precision = PRECISIONS["bf16" if uses_bf16("auto", device) else "fp32"]
    given = {
        "data.params.batch_size": flags.batch_size,
        "lightning.trainer.precision": precision,
    }
    shortcuts = [f"{key}={value}" for key, value in given.items() if value is not None]
    told = settings.read(flags.base, [*flags.overrides, *shortcuts, *speed_overrides(flags)])
    told.lightning.trainer.setdefault("precision", PRECISIONS["fp32"])
    return told


def build(told: DictConfig, flags: argparse.Namespace, folder: Path) -> TokenizerModule:
    """The module of training, with thresholds that let all terms begin at once."""
    if flags.random_weights:
        make_weights(folder, OmegaConf.select(told, "model.params.lossconfig.params"))
    module = build_module(
        told,
        trainer_options(told)[1],
        str(folder) if flags.random_weights else flags.weights_dir,
    )
    for name, step in THRESHOLDS.items():
        setattr(module.objective, name, step)
    return module


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-b", "--base", nargs="+", default=[], metavar="YAML", help="configs, merged in order")
    add("--batch_size", type=int, help="pictures of a batch (default: the config's)")
    add("--updates", type=int, default=5, help="that are timed, and rounds of each part")
    add("--warmup", type=int, default=2, help="updates and rounds before those")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    about = "of convolutions and products; auto: bf16 where it is fast (default: the config's)"
    add("--precision", choices=[*PRECISIONS, "auto"], help=about)
    settings.add_speed_flags(parser)
    add("--weights_dir", help="folder of pretrained networks (default $EQUIVARIANT_WEIGHTS)")
    add("--random_weights", action="store_true", help="do without their files: same shapes")
    add("--no_loading", action="store_true", help="make pictures up instead of reading any")
    add("--output", type=Path, metavar="FILE", help="write the figures there too, as JSON")
    add("overrides", nargs="*", metavar="key=value", help="over the configs, by dotted key")
    flags = settings.parse(parser)
    if not flags.base:
        raise UserError("-b/--base: no config given; expected one YAML file or more")
    for name in ("batch_size", "updates", "warmup"):
        found = getattr(flags, name)
        if found is not None and found < 1:
            raise UserError(f"--{name}: found {found}, expected 1 or more")
    return flags


def main() -> None:
    flags = parse()
    quieten()
    with distributed.launch(flags.device) as process, tempfile.TemporaryDirectory() as folder:
        if process.world > 1:
            raise UserError(f"torchrun: started {process.world} processes, expected one")
        report = measure(flags, process.device, Path(folder))
    show(report)
    if flags.output:
        write_json(flags.output, report)


if __name__ == "__main__":
    run_cli(main)
