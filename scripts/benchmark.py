"""Speed of sampling, of both trainings and of reading images on this machine.

    python scripts/benchmark.py sampling --model small_model --batch 1 8 --columns 16
    python scripts/benchmark.py training --models tiny_model --batch_size 8
    python scripts/benchmark.py tokenizer -b CONFIG.yaml [key=value ...]
    python scripts/benchmark.py loading FOLDER_OF_CLASS_FOLDERS

Weights are random, which changes no time. The share of the peak is what matrix products,
convolutions and attention would take at the rate of this device's fastest product, measured here in
the same precision. With --json FILE all figures go there, each as soon as it is known.
"""

import argparse
import copy
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from common import cli, distributed, provenance, seeding
from common.data import DataModule
from common.distributed import Process
from common.errors import run_cli
from common.io import write_json
from common.precision import full_float32, uses_bf16
from generator.config import SIZES, GeneratorConfig, TrainConfig
from generator.data import TokenSampler
from generator.generate import decode
from generator.inference import PRECISIONS, prepare
from generator.model import Generator
from generator.sampling import SampleConfig, sample_columns
from generator.trainer import Trainer
from tokenizer.checkpoints import untrained
from tokenizer.posterior import Posterior
from tokenizer.train import build_module, read_settings

RELEASED = provenance.REPOSITORY / "configs" / "second_stage" / "tokenizer_config.yaml"
ROUNDS = 5  # parts of a measurement, whose spread is shown
Rows: TypeAlias = Iterator[dict[str, Any]]


# --- what all of them need


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on a GPU, or on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rounds(call: Callable[[], Any], count: int, device: torch.device, seconds: float) -> dict:
    """How many a second, when a call makes `count`: the median of some rounds, and their range."""
    call()  # compiles, and chooses kernels
    start = now(device)
    call()
    repeats = max(1, round(seconds / ROUNDS / (now(device) - start)))
    found = []
    for _ in range(ROUNDS):
        start = now(device)
        for _ in range(repeats):
            call()
        found.append(count * repeats / (now(device) - start))
    return {"per_s": statistics.median(found), "slowest": min(found), "fastest": max(found)}


def matmul_rate(device: torch.device, bf16: bool) -> float:
    """FLOP/s of a large product of square matrices."""
    side, kind = 8192 if device.type == "cuda" else 2048, torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return 2 * side**3 * rounds(lambda: a @ b, 1, device, 1.0)["fastest"]


def random_generator(name: str, channels: int, classes: int) -> Generator:
    """A named size in which no weight is zero, as some are at first."""
    torch.manual_seed(0)
    model = Generator(GeneratorConfig(**SIZES[name], channels=channels, classes=classes))
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return model


# --- sampling


def plain_columns(
    model: Generator, labels: Tensor, noise: Tensor, config: SampleConfig
) -> Iterator[Tensor]:
    """Columns as Euler's method without any cache makes them, which defines what sampling gives."""
    tokens = noise[:, :0]
    null = model.condition.null(labels)
    for column in range(noise.shape[1]):
        conditional, unconditional = (
            model.hidden(tokens, model.read_condition(c))[:, -1] for c in (labels, null)
        )
        x = noise[:, column]
        for i in range(config.steps, 0, -1):
            t = torch.full((len(x),), i / config.steps, device=x.device)
            velocity = model.head(x, t, unconditional)
            velocity += config.scale_at(column) * (model.head(x, t, conditional) - velocity)
            x = x - velocity / config.steps
        yield x
        tokens = torch.cat([tokens, x[:, None]], dim=1)


def timed(columns: Iterator[Tensor], device: torch.device) -> tuple[Tensor, dict[str, float]]:
    """Tokens [B, L, C], and seconds of a column; all cost the same."""
    tokens, marks = [], [now(device)]
    for token in columns:
        tokens.append(token)
        marks.append(now(device))
    seconds = np.diff(marks)
    found = {"mean": float(seconds.mean()), "median": float(np.median(seconds))}
    return torch.stack(tokens, 1), found


@torch.no_grad()
def sampling(flags: argparse.Namespace, process: Process) -> Rows:
    device = process.device
    tokenizer = None if flags.no_decoder else untrained(flags.config_path).to(device)
    channels = tokenizer.channels if tokenizer else 256
    for name, columns, batch in itertools.product(flags.model, flags.columns, flags.batch):
        plain = random_generator(name, channels, 1000).eval().requires_grad_(False).to(device)
        engine = prepare(copy.deepcopy(plain), flags.precision, flags.compile)
        steps = flags.num_sampling_steps
        config = SampleConfig(columns, flags.cfg, solver=flags.solver, steps=steps)
        labels = torch.arange(batch, device=device)
        noise = seeding.normal(1, "noise", shape=(batch, columns, channels)).to(device)
        timed(sample_columns(engine, labels, noise[:, :2].unbind(1), config), device)
        tokens, seconds = timed(sample_columns(engine, labels, noise.unbind(1), config), device)
        row: dict[str, Any] = {"model": name, "batch": batch, "columns": columns}
        row["seconds_an_image"] = seconds["mean"] * columns / batch
        row |= {"engine": seconds, "memory": memory(device)}
        if columns <= flags.plain_columns:
            with full_float32():
                expected, slow = timed(plain_columns(plain, labels, noise, config), device)
            row |= {"plain": slow, "times_faster": slow["mean"] / seconds["mean"]}
            row["largest_difference"] = (tokens - expected).abs().max().item()
        if tokenizer:
            start = now(device)
            list(decode(tokenizer, tokens, config))
            row["decoder"] = (now(device) - start) / columns
        yield row


# --- training of the generator, and of the tokenizer


def training(flags: argparse.Namespace, process: Process) -> Rows:
    device, config = process.device, cli.read(TrainConfig, flags)
    tokenizer = untrained(flags.config_path).to(device)
    width = flags.img_size or tokenizer.height
    columns, count = width // tokenizer.column_width, config.batch_size
    labels = torch.arange(count, device=device) % flags.class_num
    inputs = {"cached": torch.randn(count, columns, tokenizer.channels, device=device)}
    if not flags.no_online:
        pixels = torch.randint(256, (count, 3, tokenizer.height, width), device=device)
        inputs["online"] = pixels.to(torch.uint8)
    peak = matmul_rate(device, uses_bf16(config.precision, device))
    for name, (kind, items) in itertools.product(flags.models.split(","), inputs.items()):
        encode = None if kind == "cached" else lambda x: tokenizer.encode(x).mode()
        tokens = TokenSampler(encode, Posterior, tokenizer.std, 1.0, device)
        batches: Any = [(items, labels)] * config.accumulate
        model = random_generator(name, tokenizer.channels, flags.class_num).to(device)
        loader: Any = DataLoader(batches, batch_size=None)
        trainer = Trainer(model, config, process, loader, tokens, columns, Path(), {}, Path())
        images_an_update = count * config.accumulate

        update = partial(trainer.train_step, batches, 1e-6)
        with FlopCounterMode(display=False) as counter:
            update()
        flops = counter.get_total_flops() / images_an_update
        found = rounds(update, images_an_update, device, flags.seconds)
        share = {"flops_an_image": flops, "share_of_peak": flops * found["per_s"] / peak}
        yield {"model": name, "tokens": kind, **found, "memory": memory(device), **share}


class Clock(pl.Callback):
    """Times updates of Lightning's own loop."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, _: Any, module: Any, *__: Any) -> None:
        if not module.batches:
            self.marks.append(now(module.device))


def tokenizer(flags: argparse.Namespace, process: Process) -> Rows:
    settings = read_settings(flags.base, flags.overrides)
    module = build_module(settings, flags.weights_dir)
    module.step = 10**6  # all terms are active
    precision: Any = settings.lightning.trainer.precision
    size, height = int(settings.data["params"]["batch_size"]), module.tokenizer.height
    pixels = torch.randint(256, (size, 3, height, height), dtype=torch.uint8)
    count = module.accumulate * (flags.warmup + flags.updates)
    batches: Any = [(pixels, torch.zeros(size))] * count
    clock, kind = Clock(), "gpu" if process.device.type == "cuda" else "cpu"
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 1, "enable_checkpointing": False, "callbacks": [clock], **quiet}
    trainer = pl.Trainer(accelerator=kind, devices=1, precision=precision, **options)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    seconds = np.diff(clock.marks)[flags.warmup - 1 :]
    found = {"slowest": float(seconds.max()), "fastest": float(seconds.min())}
    found |= {"per_s": size * module.accumulate / float(np.median(seconds))}
    peak = matmul_rate(process.device, "bf16" in precision)
    yield {**found, "memory": memory(process.device), "peak_flops": peak}


# --- reading of images


def loading(flags: argparse.Namespace, process: Process) -> Rows:
    torch.set_num_threads(1)  # as in a worker
    params = {"root": str(flags.root), "size": flags.size, "train": True}
    node = {"target": "common.data.ImageFolder", "params": params}
    for workers in flags.workers:
        data = DataModule(flags.batch_size, node, num_workers=workers)
        data.setup("fit")
        loader = data.train_dataloader()
        read = itertools.chain.from_iterable(itertools.repeat(loader)).__next__
        for _ in range(2 * workers):  # what they have read ahead
            read()
        yield {"workers": workers, **rounds(read, flags.batch_size, process.device, flags.seconds)}


# --- the command line


def build_parser() -> argparse.ArgumentParser:
    parser = cli.new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable) -> tuple[Callable, argparse.ArgumentParser]:
        sub = commands.add_parser(run.__name__, formatter_class=cli.HelpFormatter)
        sub.set_defaults(run=run)
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
        if run in (training, loading):
            sub.add_argument("--seconds", type=float, default=5, help="for each figure")
        if run in (sampling, training):
            text = "YAML file with the tokenizer's sizes"
            sub.add_argument("--config_path", type=Path, default=RELEASED, help=text)
        return sub.add_argument, sub

    add, _ = command(sampling)
    add("--model", nargs="+", default=["small_model"], choices=SIZES, help="named sizes")
    add("--batch", nargs="+", type=int, default=[1, 8], help="images at once")
    add("--columns", nargs="+", type=int, default=[16], help="columns of an image")
    add("--plain_columns", type=int, default=16, help="widest image of the plain sampler; 0: none")
    add("--cfg", type=float, default=7.0, help="guidance scale")
    add("--solver", default="euler", help="ODE solver; that of the plain sampler is euler")
    add("--num_sampling_steps", type=int, default=100, help="solver steps of a column")
    add("--precision", default="fp32", choices=PRECISIONS, help="of products")
    add("--compile", action="store_true", help="compile the flow head")
    add("--no_decoder", action="store_true", help="measure tokens alone")
    add, sub = command(training)
    add("--models", default="small_model,base_model,large_model,huge_model", help="named sizes")
    add("--img_size", type=int, help="width of the images (default: the tokenizer's height)")
    add("--class_num", type=int, default=1000, help="classes")
    add("--no_online", action="store_true", help="leave out the tokenizer, slow on CPUs")
    cli.add_flags(sub, TrainConfig)
    add, _ = command(tokenizer)
    add("-b", "--base", nargs="+", required=True, metavar="YAML", help="configs, merged in order")
    add("overrides", nargs="*", metavar="key=value", help="over the configs")
    add("--weights_dir", help="folder of pretrained networks")
    add("--warmup", type=int, default=3, help="updates before the measured ones")
    add("--updates", type=int, default=10, help="measured updates")
    add, _ = command(loading)
    add("root", type=Path, help="folder of class folders of images")
    add("--size", type=int, default=256, help="of the square that is cut")
    add("--batch_size", type=int, default=32, help="of the loader")
    add("--workers", nargs="+", type=int, default=[0, 1, provenance.cores()], help="of the loader")
    return parser


def main() -> None:
    flags = build_parser().parse_args()
    run = vars(flags).pop("run")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(flags).items()}
    rows: list[dict[str, Any]] = []
    record = {"settings": settings, "rows": rows, "conditions": provenance.describe()}
    with distributed.launch(flags.device) as process:
        for row in run(flags, process):
            cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print(", ".join(cells), flush=True)
            rows.append(row)
            if flags.json:  # an interruption loses no row
                write_json(flags.json, record)


if __name__ == "__main__":
    run_cli(main)
