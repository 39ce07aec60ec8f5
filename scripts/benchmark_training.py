"""Measure how fast the generator trains on this machine, size by size.

    python scripts/benchmark_training.py --precision bf16 --compile
    python scripts/benchmark_training.py --models tiny_model --batch_size 8 --output FILE.json

Whole updates are made, as in training: the posterior's noise, loss, gradients, clipping, AdamW and
average. `cached` starts from posterior means in memory, `online` from pictures in memory that the
tokenizer of --config_path encodes first; reading files is what benchmark_loading.py measures. All
weights are random.

The share of the peak is what matrix products, convolutions and attention would take at the rate of
this device's fastest product, measured here in the same precision. The tokenizer's part runs in
float32 whatever the precision, and what --grad_checkpointing computes twice counts twice. Memory is
that of tensors on a GPU; on a CPU it is that of the whole program so far.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import distributed, peak
from common import provenance as environment
from common.distributed import Process
from common.errors import UserError, run_cli
from common.records import write_json
from common.seeding import BatchDraws
from generator.data import tokenise
from generator.learner import Learner
from generator.model import FLOW_HEADS, SIZES, Generator, GeneratorConfig
from generator.settings import TrainingConfig, add_training_flags, given
from tokenizer.loading import untrained
from tokenizer.model import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
RELEASED = ROOT / "configs" / "second_stage" / "tokenizer_config.yaml"
NAMED = "small_model,base_model,large_model,huge_model"
ROUNDS = 5  # parts of a measurement, whose spread is shown


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("what is measured").add_argument
    add("--models", default=NAMED, help=f"named sizes (default {NAMED})")
    add("--config_path", type=Path, default=RELEASED, help="YAML with the tokenizer's sizes")
    add("--img_size", type=int, help="width of the pictures (default: the tokenizer's height)")
    add("--class_num", type=int, default=1000, help="classes (default 1000)")
    add(
        "--no_online", action="store_true", help="leave out the tokenizer, which takes long on CPUs"
    )
    add("--seconds", type=float, default=5, help="for each figure (default 5)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--output", type=Path, metavar="FILE", help="write the figures there too, as JSON")
    add_training_flags(parser)
    return parser


def rates(update: Callable[[], Any], images: int, device: torch.device, seconds: float) -> dict:
    """Images a second: the median of some rounds, and their range."""

    def round_of(repeats: int) -> float:
        peak.synchronise(device)
        start = time.perf_counter()
        for _ in range(repeats):
            update()
        peak.synchronise(device)
        return (time.perf_counter() - start) / repeats

    round_of(2)  # compiles, and chooses kernels
    repeats = max(1, round(seconds / ROUNDS / round_of(1)))
    found = [images / round_of(repeats) for _ in range(ROUNDS)]
    return {
        "images_per_s": statistics.median(found),
        "slowest": min(found),
        "fastest": max(found),
    }


def measure(
    name: str, flags: argparse.Namespace, training: TrainingConfig, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Updates of one size, from cached means and from pictures."""
    device = tokenizer.token_scale.device
    process = Process(0, device.index or 0, 1, device)
    sizes = {**SIZES[name], **FLOW_HEADS[name], "channels": tokenizer.channels}
    model = GeneratorConfig(**sizes, classes=flags.class_num)
    width = flags.img_size or tokenizer.height
    tokenizer.check_size(tokenizer.height, width)
    columns, images = width // tokenizer.column_width, training.batch_size
    inputs = {"cached": torch.randn(images, columns, tokenizer.channels, device=device)}
    if not flags.no_online:
        pictures = torch.randint(256, (images, 3, tokenizer.height, width), device=device)
        inputs["online"] = pictures.to(torch.uint8)
    labels = torch.arange(images, device=device) % flags.class_num

    def tokens(batch: Any, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        return tokenise(tokenizer, batch, draws, device)

    learner = Learner(Generator(model).to(device), training, process, tokens, columns)
    report: dict[str, Any] = {"parameters": sum(p.numel() for p in learner.model.parameters())}
    top = peak.matmul_rate(device, torch.bfloat16 if learner.bf16 else torch.float32,
                           tf32=training.precision == "tf32")  # fmt: skip
    report["peak_flops_per_s"] = top
    for kind, items in inputs.items():
        batches = [(items, labels)] * training.accumulate
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        def update(batches: list = batches) -> None:
            learner.update(batches, 0, 1e-6)

        with peak.counted() as work:
            update()
        entry = rates(update, images * training.accumulate, device, flags.seconds)
        entry["memory_bytes"] = peak.peak_memory(device)
        entry["flops_an_image"] = work.flops / (images * training.accumulate)
        entry["share_of_peak"] = entry["flops_an_image"] * entry["images_per_s"] / top
        report[kind] = entry
    return report


def show(name: str, report: dict[str, Any]) -> None:
    for kind in ("cached", "online"):
        if kind not in report:
            continue
        entry = report[kind]
        between = f"{entry['slowest']:.1f}-{entry['fastest']:.1f}"
        print(
            f"{name:14}{report['parameters'] / 1e6:8.1f} M  {kind:8}{entry['images_per_s']:10.1f}"
            f"{between:>16}{entry['memory_bytes'] / 2**30:10.2f} GiB"
            f"{entry['flops_an_image'] / 1e9:10.1f} G{entry['share_of_peak']:9.1%}",
            flush=True,
        )


def main() -> None:
    flags = build_parser().parse_args()
    training = TrainingConfig(**given(flags))
    names = flags.models.split(",")
    unknown = [name for name in names if name not in SIZES]
    if unknown:
        raise UserError(f"--models: found {unknown[0]!r}, expected some of {', '.join(SIZES)}")
    with distributed.launch(flags.device) as process:
        if process.world > 1:
            raise UserError("benchmark_training.py: expected one process, started without torchrun")
        if training.precision == "tf32":
            if process.device.type == "cpu":
                raise UserError("--precision: found tf32 on a CPU, expected fp32, bf16 or auto")
            torch.set_float32_matmul_precision("high")
        tokenizer = untrained(flags.config_path).to(process.device)
        record = {"conditions": environment.describe(ROOT), "training": asdict(training)}
        record["tokenizer"] = {"height": tokenizer.height, "column_width": tokenizer.column_width}
        print(
            f"{'size':14}{'parameters':>10}  {'tokens':8}{'images/s':>10}{'rounds':>16}"
            f"{'peak memory':>14}{'FLOP/image':>12}{'of peak':>9}"
        )
        for name in names:
            record[name] = measure(name, flags, training, tokenizer)
            show(name, record[name])
            if flags.output:
                write_json(flags.output, record)
            if process.device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    run_cli(main)
