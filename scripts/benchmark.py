"""Speed of sampling, of both trainings and of reading images on this machine.

    python scripts/benchmark.py sampling --model small_model --batch 1 8 --columns 16
    python scripts/benchmark.py training --models tiny_model --batch_size 8
    python scripts/benchmark.py tokenizer -b CONFIG.yaml [key=value ...]
    python scripts/benchmark.py loading FOLDER_OF_CLASS_FOLDERS

Weights are untrained, which changes no time. The share of the peak is what matrix products,
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
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from common import cli, config, distributed, provenance
from common.data.loader import DataModule
from common.distributed import Process
from common.errors import run_cli
from common.io import write_json
from common.precision import full_float32, uses_bf16
from generator.config import SIZES, GeneratorConfig, TrainConfig
from generator.data import TokenSampler
from generator.inference import PRECISIONS, prepare, set_tf32
from generator.model import Generator
from generator.sampling import SampleConfig, sample_columns
from generator.solvers import Solver, guided
from generator.trainer import Trainer
from tokenizer.checkpoints import untrained
from tokenizer.posterior import Posterior
from tokenizer.train import Settings, build_module

RELEASED = provenance.REPOSITORY / "configs" / "second_stage" / "tokenizer_config.yaml"
CHANNELS, CLASSES, PLAIN_COLUMNS = 256, 1000, 16
SECONDS, UPDATES = 5.0, 10  # of a measurement
QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
Row = dict[str, Any]


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


def rates(count: int, times: list[float]) -> Row:
    """How many a second, when each of these times, in seconds, is that of `count`."""
    found = [count / seconds for seconds in times]
    return {"per_s": statistics.median(found), "slowest": min(found), "fastest": max(found)}


def rate(call: Callable[[], Any], count: int) -> Row:
    """How many a second, when a call makes `count`."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return rates(count, timer.blocked_autorange(min_run_time=SECONDS).times)


def matmul_rate(device: torch.device, bf16: bool) -> float:
    """FLOP/s of a large product of square matrices."""
    side, kind = 8192 if device.type == "cuda" else 2048, torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return 2 * side**3 * rate(lambda: a @ b, 1)["fastest"]


def untrained_generator(name: str, channels: int, device: torch.device) -> Generator:
    sizes = GeneratorConfig(**SIZES[name], channels=channels, classes=CLASSES)
    return Generator(sizes).to(device)


def plain_columns(
    model: Generator, labels: Tensor, noise: Tensor, config: SampleConfig
) -> Iterator[Tensor]:
    """Columns as Euler's method makes them without any cache."""
    tokens = noise[:, :0]
    context = model.read_condition(torch.cat([labels, model.condition.null(labels)]))
    for column, start in enumerate(noise.unbind(1)):
        hidden = model.hidden(tokens.repeat(2, 1, 1), context)[:, -1]

        def both(x: Tensor, t: float, hidden: Tensor = hidden) -> Tensor:
            return model.head(x, x.new_full((len(x),), t), hidden)

        velocity = guided(both, config.scale_at(column))
        token = Solver(steps=config.steps).solve(velocity, start)
        yield token
        tokens = torch.cat([tokens, token[:, None]], dim=1)


def timed(columns: Iterator[Tensor], device: torch.device) -> Row:
    """Seconds of a column; all cost the same."""
    marks = [now(device)]
    for _ in columns:
        marks.append(now(device))
    seconds = [b - a for a, b in itertools.pairwise(marks)]
    return {"mean": statistics.fmean(seconds), "median": statistics.median(seconds)}


@torch.no_grad()
def sampling(flags: argparse.Namespace, process: Process) -> Iterator[Row]:
    device = process.device
    config = SampleConfig(cfg=7.0, steps=flags.num_sampling_steps)
    for name, columns, batch in itertools.product(flags.model, flags.columns, flags.batch):
        model = untrained_generator(name, CHANNELS, device).eval().requires_grad_(False)
        engine = prepare(copy.deepcopy(model), flags.precision, flags.compile)
        labels = torch.arange(batch, device=device)
        noise = torch.randn(batch, columns, CHANNELS, device=device)
        timed(sample_columns(engine, labels, noise[:, :2].unbind(1), config), device)  # warm-up
        seconds = timed(sample_columns(engine, labels, noise.unbind(1), config), device)
        row: Row = {"model": name, "batch": batch, "columns": columns, "engine": seconds}
        row |= {"seconds_an_image": seconds["mean"] * columns / batch, "memory": memory(device)}
        if columns <= PLAIN_COLUMNS:
            with full_float32():
                slow = timed(plain_columns(model, labels, noise, config), device)
            row |= {"plain": slow, "times_faster": slow["mean"] / seconds["mean"]}
        yield row


def training(flags: argparse.Namespace, process: Process) -> Iterator[Row]:
    device, config = process.device, cli.read(TrainConfig, flags)
    set_tf32(config.precision, device)
    tokenizer = untrained(flags.config_path).to(device)
    height, count = tokenizer.height, config.batch_size
    columns = height // tokenizer.column_width
    labels = torch.arange(count, device=device) % CLASSES
    pixels = torch.randint(256, (count, 3, height, height), dtype=torch.uint8, device=device)
    cached = torch.randn(count, columns, tokenizer.channels, device=device)
    inputs = {"cached": cached, "online": pixels}
    peak = matmul_rate(device, uses_bf16(config.precision, device))
    for name, (kind, items) in itertools.product(flags.models, inputs.items()):
        encode = None if kind == "cached" else lambda x: tokenizer.encode(x).mean
        tokens = TokenSampler(encode, Posterior, tokenizer.std, 1.0, device)
        batches: Any = [(items, labels)] * config.accumulate
        model = untrained_generator(name, tokenizer.channels, device)
        loader: Any = DataLoader(batches, batch_size=None)
        trainer = Trainer(model, config, process, loader, tokens, columns, {}, Path(), Path())
        update = partial(trainer.train_step, batches, 1e-6)
        with FlopCounterMode(display=False) as counter:
            update()
        flops = counter.get_total_flops() / trainer.images_an_update
        found = rate(update, trainer.images_an_update)
        share = {"flops_an_image": flops, "share_of_peak": flops * found["per_s"] / peak}
        yield {"model": name, "tokens": kind, **found, "memory": memory(device), **share}


def tokenizer(flags: argparse.Namespace, process: Process) -> Iterator[Row]:
    settings = config.structured(Settings, config.load(flags.base, flags.overrides))
    module = build_module(settings, flags.weights_dir)
    module.step = 10**6  # all terms are active
    device, size = process.device, int(settings.data["params"]["batch_size"])
    height, marks = module.tokenizer.height, []
    pixels = torch.randint(256, (size, 3, height, height), dtype=torch.uint8)
    batches: Any = [(pixels, torch.zeros(size))] * (module.accumulate * (3 + UPDATES))

    def mark(*_: Any) -> None:
        if not module.batches:  # between updates
            marks.append(now(device))

    trainer = pl.Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision=settings.lightning.trainer.precision,
        max_epochs=1,
        callbacks=[pl.callbacks.LambdaCallback(on_train_batch_end=mark)],
        **dict.fromkeys(QUIET, False),
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    times = [b - a for a, b in itertools.pairwise(marks[2:])]  # the first updates are slower
    yield rates(size * module.accumulate, times) | {"memory": memory(device)}


def loading(flags: argparse.Namespace, process: Process) -> Iterator[Row]:
    torch.set_num_threads(1)  # as in a worker
    params = {"root": flags.root, "size": 256, "train": True}
    node = {"target": "common.data.folders.ImageFolder", "params": params}
    for workers in flags.workers:
        data = DataModule(flags.batch_size, node, num_workers=workers)
        data.setup("fit")
        read = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader())).__next__
        for _ in range(2 * workers):  # what they have read ahead
            read()
        yield {"workers": workers, **rate(read, flags.batch_size)}


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    commands = parser.add_subparsers(required=True)
    subs = {}
    for run in (sampling, training, tokenizer, loading):
        subs[run] = sub = commands.add_parser(run.__name__)
        sub.set_defaults(run=run)
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    add = subs[sampling].add_argument
    add("--model", nargs="+", default=["small_model"], choices=SIZES, help="named sizes")
    add("--batch", nargs="+", type=int, default=[1, 8], help="images at once")
    add("--columns", nargs="+", type=int, default=[16], help="columns of an image")
    add("--num_sampling_steps", type=int, default=100, help="Euler steps of a column")
    add("--precision", default="fp32", choices=PRECISIONS, help="of products")
    add("--compile", action="store_true", help="compile the flow head")
    add = subs[training].add_argument
    add("--models", nargs="+", default=["small_model"], choices=SIZES, help="named sizes")
    add("--config_path", type=Path, default=RELEASED, help="YAML file with the tokenizer's sizes")
    cli.add_flags(subs[training], TrainConfig)
    add = subs[tokenizer].add_argument
    add("-b", "--base", action="append", required=True, metavar="YAML", help="configs, merged")
    add("overrides", nargs="*", metavar="key=value", help="over the configs")
    add("--weights_dir", help="folder of pretrained networks")
    add = subs[loading].add_argument
    add("root", help="folder of class folders of images")
    add("--batch_size", type=int, default=32, help="of the loader")
    add("--workers", nargs="+", type=int, default=[0, 1, provenance.cores()], help="of the loader")

    flags = parser.parse_args()
    settings = {k: str(v) for k, v in vars(flags).items() if k != "run"}
    rows: list[Row] = []
    record = {"settings": settings, "rows": rows, "conditions": provenance.describe()}
    with distributed.launch(flags.device) as process:
        for row in flags.run(flags, process):
            cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print(", ".join(cells), flush=True)
            rows.append(row)
            if flags.json:  # an interruption loses no row
                write_json(flags.json, record)


if __name__ == "__main__":
    run_cli(main)
