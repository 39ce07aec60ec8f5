"""Measure at which rate products of a few rows read their weights, by order of the weights.

    python scripts/benchmark_products.py --width 960 --rows 1 2 4 8 16 32 --json products.json

A chain of square products, each with weights of its own, as in the flow head: together they are
larger than any cache. Prints GB of weights a second; `read` sums the same weights and multiplies
nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import provenance as environment
from common.errors import run_cli
from common.records import write_json
from generator.inference import PackedLinear, can_pack

ROOT = Path(__file__).resolve().parents[1]
Product = Callable[[Tensor], Tensor]


def candidates(layers: list[nn.Linear]) -> dict[str, list[Product]]:
    """Ways to multiply with each layer's weight, by name."""
    weights = [layer.weight for layer in layers]
    turned = [weight.T.contiguous() for weight in weights]
    ways: dict[str, list[Product]] = {
        "read": [lambda x, w=w: (w.sum(), x)[1] for w in weights],
        "x Wᵀ": [lambda x, w=w: F.linear(x, w) for w in weights],
        "x V, V = Wᵀ stored": [lambda x, v=v: torch.mm(x, v) for v in turned],
        "(W xᵀ)ᵀ": [lambda x, w=w: torch.mm(w, x.T).T for w in weights],
    }
    if can_pack(torch.float32):
        ways["packed"] = [PackedLinear(layer, torch.float32) for layer in layers]
    if can_pack(torch.bfloat16):
        ways["packed, bfloat16"] = [PackedLinear(layer, torch.bfloat16) for layer in layers]
    return ways


def rate(chain: list[Product], x: Tensor, size: int, repeats: int) -> dict[str, float]:
    """Bytes a second: the best and the median of some passes through the chain."""
    rates = []
    for _ in range(repeats + 2):
        start, y = time.perf_counter(), x
        for product in chain:
            y = product(y)
        rates.append(size / (time.perf_counter() - start))
    return {"best": max(rates[2:]), "median": statistics.median(rates[2:])}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--width", type=int, default=960)
    add("--layers", type=int, default=24)
    add("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    add("--repeats", type=int, default=20)
    add("--json", type=Path, metavar="FILE", help="write the table there too")
    flags = parser.parse_args()

    layers = [nn.Linear(flags.width, flags.width) for _ in range(flags.layers)]
    values = flags.layers * flags.width**2
    ways = candidates(layers)
    table = []
    print("GB/s, best (median)  " + "".join(f"{f'{n} rows':>14}" for n in flags.rows))
    for name, chain in ways.items():
        size = values * (2 if "bfloat16" in name else 4)
        found = [
            {
                "way": name,
                "rows": n,
                **rate(chain, torch.randn(n, flags.width), size, flags.repeats),
            }
            for n in flags.rows
        ]
        cells = (f"{row['best'] / 1e9:.1f} ({row['median'] / 1e9:.1f})" for row in found)
        print(f"{name:21}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
        table += found
    if flags.json:
        settings = {"width": flags.width, "layers": flags.layers, "repeats": flags.repeats}
        conditions = environment.describe(ROOT)
        write_json(flags.json, {"settings": settings, "conditions": conditions, "rates": table})


if __name__ == "__main__":
    run_cli(main)
