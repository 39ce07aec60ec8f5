"""Measure drawing: the sampling engine, and beside it the plain sampler that defines its results.

    python scripts/benchmark_sampling.py --model small_model --batch 1 8 --columns 16
    python scripts/benchmark_sampling.py --model tiny_model --batch 1 --columns 32 1024 \\
        --plain_columns 0 --json sampling.json

Weights are random, which changes no time. The engine is warmed up with two columns. All columns
cost the same, so that beside the mean of their times the fastest is telling, where others use the
machine too. `of bound` is the least time a column can take, divided by what it took: every weight
read once a solver step (the modulations' once a column) at the measured rate of reading, or the
products at the measured rate of a large one, whichever takes longer.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import distributed
from common import provenance as environment
from common.errors import UserError, run_cli
from common.precision import full_float32
from common.records import write_json
from generator.cost import column_work
from generator.decoding import Decoder, decode
from generator.drawing import Drawer
from generator.guidance import Guidance
from generator.inference import PRECISIONS, linear_for, prepare
from generator.kv_cache import ColumnReader
from generator.model import FLOW_HEADS, SIZES, Generator, GeneratorConfig
from generator.plain import plain_columns
from generator.sampling import Sampling, sample_columns
from generator.solvers import METHODS, Solver
from tokenizer.loading import untrained

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "configs" / "second_stage" / "tokenizer_config.yaml"
MIB = 2**20


@dataclass
class Clock:
    """Seconds of named parts; waits for the device before and after each."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, name: str, function: Callable) -> Callable:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            start = self.now()
            result = function(*arguments, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start
            return result

        return wrapper

    @contextmanager
    def watching(self, name: str, owner: type, method: str) -> Iterator[None]:
        """Times a method of all objects of a class."""
        original = getattr(owner, method)
        setattr(owner, method, self.timed(name, original))
        try:
            yield
        finally:
            setattr(owner, method, original)


def random_generator(name: str, device: torch.device) -> Generator:
    """A named size with 1000 classes and 256 channels; no weight is zero, as some are at first."""
    torch.manual_seed(0)
    sizes = {**SIZES[name], **FLOW_HEADS[name], "channels": 256, "classes": 1000}
    model = Generator(GeneratorConfig(**sizes)).eval().requires_grad_(False)
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return model.to(device)


def memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that was allocated, on a CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free already
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except OSError:
        return 0


def best(function: Callable[[], object], clock: Clock, repeats: int = 5) -> float:
    """The shortest of some times, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = clock.now()
        function()
        times.append(clock.now() - start)
    return min(times)


def machine_rates(device: torch.device, precision: str, clock: Clock) -> dict[str, float]:
    """Bytes a second of reading, and operations a second of a large matrix product."""
    values = torch.ones(128 * MIB, device=device)
    size = 8192 if device.type == "cuda" else 2048
    linear = nn.Linear(size, size, device=device).requires_grad_(False)
    make, x = linear_for(device, precision), torch.randn(size, size, device=device)
    product = make(linear) if make else linear
    return {
        "bandwidth": values.nbytes / best(values.sum, clock),
        "rate": 2 * size**3 / best(lambda: product(x), clock),
    }


@dataclass(frozen=True)
class Case:
    """One picture size of one model, and how it is drawn."""

    model: str
    batch: int
    columns: int
    sampling: Sampling

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Labels [B] and noise [B, L, C]."""
        randomness = torch.Generator().manual_seed(1)
        noise = torch.randn(self.batch, self.columns, 256, generator=randomness)
        return torch.arange(self.batch, device=device), noise.to(device)


def stopped(columns: Iterable[Tensor], clock: Clock) -> tuple[Tensor, list[float], list[int]]:
    """Tokens [B, L, C], the seconds of each column, and the memory at the 32nd and the last."""
    tokens, seconds, held = [], [], []
    start = clock.now()
    for token in columns:
        seconds.append(clock.now() - start)
        tokens.append(token)
        if len(tokens) == 32:
            held.append(memory(clock.device))
        start = clock.now()
    return torch.stack(tokens, 1), seconds, [*held, memory(clock.device)]


def measure(
    plain: Generator,
    engine: Generator,
    decoder: Decoder | None,
    case: Case,
    flags: argparse.Namespace,
    clock: Clock,
    rates: dict[str, float],
) -> dict[str, Any]:
    """All figures of one case."""
    guidance, solver = case.sampling.guidance, case.sampling.solver
    labels, noise = case.inputs(clock.device)

    def draw(columns: int) -> Iterator[Tensor]:
        starts = noise[:, :columns].unbind(1)
        return sample_columns(engine, labels, starts, case.sampling)

    stopped(draw(2), clock)
    if clock.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(clock.device)
    tokens, each, held = stopped(draw(case.columns), clock)
    row: dict[str, Any] = {
        "model": case.model,
        "batch": case.batch,
        "columns": case.columns,
        "seconds_an_image": sum(each) / case.batch,
        "engine": summary(each),
        "memory": held,
    }
    if case.columns <= flags.plain_columns:
        scales = [guidance.at(i) for i in range(case.columns)]
        columns = plain_columns(plain, labels, noise, scales, solver.steps)
        with full_float32():
            expected, slow, _ = stopped(columns, clock)
        row["plain"] = summary(slow)
        row["times_faster"] = {k: row["plain"][k] / row["engine"][k] for k in row["plain"]}
        row["largest_difference"] = (tokens - expected).abs().max().item()

    watch = Clock(clock.device)
    with (
        watch.watching("transformer", ColumnReader, "read"),
        watch.watching("head", Drawer, "draw"),
    ):
        some = min(case.columns, 16)
        stopped(draw(some), clock)
    parts = {name: part / some for name, part in watch.seconds.items()}
    if decoder is not None:
        start = clock.now()
        list(decode(decoder, tokens))
        parts["decoder"] = (clock.now() - start) / case.columns
    row["parts"] = parts

    work = column_work(plain, solver, case.batch * (2 if guidance.is_active else 1))
    size = 2 if flags.precision == "bf16" else 4
    row["bound"] = sum(w.seconds(size, rates["bandwidth"], rates["rate"]) for w in work.values())
    row["of_bound"] = {k: row["bound"] / row["engine"][k] for k in row["engine"]}
    return row


def summary(seconds: list[float]) -> dict[str, float]:
    """Of columns, which all cost the same: the fastest is the least disturbed by others."""
    return {
        "mean": statistics.fmean(seconds),
        "median": statistics.median(seconds),
        "fastest": min(seconds),
    }


def show(row: dict[str, Any]) -> None:
    parts = row["parts"]
    shares = ", ".join(f"{k} {v / sum(parts.values()):.0%}" for k, v in parts.items())
    mib = " then ".join(f"{m / MIB:.0f}" for m in row["memory"])
    print(f"{row['model']}, batch {row['batch']}, {row['columns']} columns")
    print(f"  {row['seconds_an_image']:.3f} s an image; {shares}; memory {mib} MiB")
    print(f"  {'a column, s':28}{'mean':>10}{'median':>10}{'fastest':>10}")
    for key, name, form in (
        ("engine", "engine", ".4f"),
        ("of_bound", "  of bound", ".0%"),
        ("plain", "plain sampler", ".4f"),
        ("times_faster", "  times slower", ".2f"),
    ):
        if key in row:
            print(f"  {name:28}" + "".join(f"{value:>10{form}}" for value in row[key].values()))
    if "plain" in row:
        print(f"  tokens differ by at most {row['largest_difference']:.1e}")
    print(end="", flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", nargs="+", default=["small_model"], choices=SIZES)
    add("--batch", nargs="+", type=int, default=[1, 8])
    add("--columns", nargs="+", type=int, default=[16])
    add("--plain_columns", type=int, default=16, help="widest image of the plain sampler; 0: none")
    add("--cfg", type=float, default=7.0)
    add("--solver", default="euler", choices=METHODS, help="the plain sampler's is always euler")
    add("--num_sampling_steps", type=int, default=100)
    add("--precision", default="fp32", choices=PRECISIONS)
    add("--compile", action="store_true", help="compile the flow head")
    add("--config_path", type=Path, default=TOKENIZER, metavar="YAML", help="the decoder's sizes")
    add("--no_decoder", action="store_true", help="measure tokens alone")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--json", type=Path, metavar="FILE", help="write the table there too")
    return parser


def main() -> None:
    flags = build_parser().parse_args()
    for name in ("batch", "columns"):
        if min(getattr(flags, name)) < 1:
            raise UserError(f"--{name}: found {min(getattr(flags, name))}, expected at least 1")
    rows = []
    with distributed.launch(flags.device) as process:
        clock = Clock(process.device)
        solver = Solver(flags.solver, flags.num_sampling_steps)
        decoder = None if flags.no_decoder else untrained(flags.config_path).to(process.device)
        for name in flags.model:
            plain = random_generator(name, process.device)
            engine = prepare(copy.deepcopy(plain), flags.precision, flags.compile)
            rates = machine_rates(process.device, flags.precision, clock)
            reading, computing = (rate / 1e9 for rate in rates.values())
            print(f"{name}: reading {reading:.1f} GB/s, products {computing:.0f} Gop/s")
            for columns, batch in product(flags.columns, flags.batch):
                sampling = Sampling(Guidance(flags.cfg, "linear", columns), solver)
                case = Case(name, batch, columns, sampling)
                rows.append({**measure(plain, engine, decoder, case, flags, clock, rates), **rates})
                show(rows[-1])
    if flags.json:
        settings = {
            "guidance": flags.cfg,
            "solver": asdict(solver),
            "precision": flags.precision,
            "compile": flags.compile,
            "decoder": not flags.no_decoder,
        }
        conditions = environment.describe(ROOT)
        write_json(flags.json, {"settings": settings, "conditions": conditions, "rows": rows})


if __name__ == "__main__":
    run_cli(main)
