"""Print the parameters and multiply-adds of the generator's named sizes and of a tokenizer.

    python scripts/model_table.py [--config_path TOKENIZER.yaml] [--json FILE]

Multiply-adds are those of matrix products, convolutions and attention; norms, activations and
other work on single values are left out.

Generator: 1000 classes, 16 class tokens, tokens of 256 channels, the default head of each size; one
training forward of one picture, that is 16 columns through the transformer and 4 flow draws of each
through the head. (Training itself spares the transformer the last column, which predicts nothing.)

Tokenizer: one square picture at the height of the config.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from common import config
from common.errors import UserError, run_cli
from common.io import replacing
from generator.model import FLOW_HEADS, SIZES, Generator, GeneratorConfig
from tokenizer.loading import SIZES as TOKENIZER_KEYS
from tokenizer.model import Tokenizer
from tokenizer.released import to_released

RELEASED = Path(__file__).parents[1] / "configs" / "second_stage" / "tokenizer_config.yaml"
COLUMNS, REPEATS, CHANNELS, CLASSES = 16, 4, 256, 1000


@dataclass(frozen=True)
class Cost:
    """Parameters of a part and multiply-adds of its forward pass.

    `never_run` counts parameters that released files store beside these, but never use.
    """

    parameters: int
    multiply_adds: int
    never_run: int = 0


def multiply_adds(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() // 2


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def generator_cost(name: str) -> Cost:
    """One of the generator's named sizes."""
    sizes = {**SIZES[name], **FLOW_HEADS[name], "channels": CHANNELS, "classes": CLASSES}
    with torch.device("meta"):
        model = Generator(GeneratorConfig(**sizes)).eval()
        tokens = torch.empty(1, COLUMNS, CHANNELS)
        labels = torch.zeros(1, dtype=torch.long)
        times = torch.empty(REPEATS * COLUMNS)

    def forward() -> None:
        hidden = model.hidden(tokens, model.read_classes(labels))[:, :-1]  # [1, L, D]
        conditions = hidden[0].repeat(REPEATS, 1)  # [4·L, D]
        model.head(tokens[0].repeat(REPEATS, 1), times, conditions)

    return Cost(parameters(model), multiply_adds(forward))


def tokenizer_costs(sizes: dict) -> dict[str, Cost]:
    """The parts of a tokenizer; `sizes` are the constructor's arguments."""
    with torch.device("meta"):
        model: Tokenizer = config.instantiate(
            {"target": "tokenizer.model.Tokenizer", "params": sizes}, "model"
        ).eval()
        columns = model.height // model.column_width
        image = torch.empty(1, 3, model.height, model.height)
        vectors = torch.empty(1, model.config.z_channels * model.config.rows, columns)
        tokens = torch.empty(1, model.channels, columns)
        runs = {
            "encoder": lambda: model.encoder(image),
            "to_tokens": lambda: model.to_tokens(vectors),
            "from_tokens": lambda: model.from_tokens(tokens),
            "decoder": lambda: model.decoder(vectors.mT),
        }
        if model.semantic_decoder is not None:
            features = model.decoder(vectors.mT).features
            runs["semantic_decoder"] = lambda: model.semantic_decoder(features)

        costs = {
            name: Cost(parameters(getattr(model, name)), multiply_adds(forward))
            for name, forward in runs.items()
        }
        if model.semantic_decoder is not None:
            released = to_released(model, model).items()
            stored = sum(v.numel() for k, v in released if k.startswith("semantic_decoder."))
            cost = costs["semantic_decoder"]
            costs["semantic_decoder"] = replace(cost, never_run=stored - cost.parameters)
        return costs


def show(title: str, costs: dict[str, Cost]) -> None:
    print(f"{title:20}{'parameters':>14}{'multiply-adds':>16}")
    for name, cost in costs.items():
        line = f"{name:20}{cost.parameters / 1e6:12.3f} M{cost.multiply_adds / 1e9:14.3f} G"
        if cost.never_run:
            stored = cost.parameters + cost.never_run
            line += (
                f"   (released files store {stored / 1e6:.3f} M, of which "
                f"{cost.never_run / 1e6:.3f} M never run and are not in this model)"
            )
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config_path",
        type=Path,
        default=RELEASED,
        metavar="YAML",
        help="tokenizer, as model.params (default: the released one)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    flags = parser.parse_args()

    settings = OmegaConf.to_container(config.load(flags.config_path), resolve=True)
    params = (settings.get("model") or {}).get("params")
    if not isinstance(params, dict):
        raise UserError(f"{flags.config_path}: model.params: missing; expected a tokenizer's sizes")
    sizes = {key: value for key, value in params.items() if key in TOKENIZER_KEYS}

    table = {
        "generator": {name: generator_cost(name) for name in SIZES},
        "tokenizer": tokenizer_costs(sizes),
    }
    for title, costs in table.items():
        show(title, costs)
    if flags.json:
        plain = {k: {n: asdict(c) for n, c in costs.items()} for k, costs in table.items()}
        with replacing(flags.json) as file:
            file.write(json.dumps(plain, indent=2).encode())


if __name__ == "__main__":
    run_cli(main)
