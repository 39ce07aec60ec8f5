"""Parameters and multiply-adds of the generator's named sizes and of the released tokenizer.

    python scripts/model_table.py

Multiply-adds are those of matrix products, convolutions and attention. Generator: 1000 classes, 16
condition tokens, tokens of 256 channels; one training forward of one image, that is 16 columns
through the transformer and 4 flow draws of each through the head. (Training itself spares the
transformer the last column, which predicts nothing.) Tokenizer: one square image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import cli, provenance
from common.errors import run_cli
from generator.config import SIZES, GeneratorConfig
from generator.model import Generator
from tokenizer.checkpoints import untrained

RELEASED = provenance.REPOSITORY / "configs" / "second_stage" / "tokenizer_config.yaml"
COLUMNS, DRAWS, CHANNELS, CLASSES = 16, 4, 256, 1000


def cost(module: nn.Module, forward: Callable[[], Any]) -> dict[str, int]:
    """Parameters of a part, and multiply-adds of its forward pass."""
    with FlopCounterMode(display=False) as counter:
        forward()
    parameters = sum(p.numel() for p in module.parameters())
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2}


def generator_cost(name: str) -> dict[str, int]:
    """One of the generator's named sizes."""
    model = Generator(GeneratorConfig(**SIZES[name], channels=CHANNELS, classes=CLASSES)).eval()
    tokens, labels = torch.empty(1, COLUMNS, CHANNELS), torch.zeros(1, dtype=torch.long)

    def forward() -> None:
        hidden = model.hidden(tokens, model.read_condition(labels))[0, :-1]  # [L, D]
        times = torch.empty(DRAWS * COLUMNS)
        model.head(tokens[0].repeat(DRAWS, 1), times, hidden.repeat(DRAWS, 1))

    return cost(model, forward)


def tokenizer_costs(path: Path) -> dict[str, dict[str, int]]:
    """The parts of the tokenizer whose sizes are `model.params` of a YAML file."""
    model = untrained(path)
    image = torch.empty(1, 3, model.height, model.height)
    mixer, features = model.bottleneck, model.encoder(image)
    spread = mixer.decode(mixer.encode(features))
    costs = {
        "encoder": cost(model.encoder, lambda: model.encoder(image)),
        "bottleneck": cost(mixer, lambda: mixer.decode(mixer.encode(features))),
        "decoder": cost(model.decoder, lambda: model.decoder(spread)),
    }
    if model.semantic_decoder is not None:
        semantic, deep = model.semantic_decoder, model.decoder(spread)[1]
        costs["semantic_decoder"] = cost(semantic, lambda: semantic(deep))
    return costs


def main() -> None:
    cli.parse(cli.new_parser(__doc__))
    with torch.device("meta"):
        generators = {name: generator_cost(name) for name in SIZES}
        table = {"generator": generators, "tokenizer": tokenizer_costs(RELEASED)}
    for title, costs in table.items():
        print(f"{title:20}{'parameters':>14}{'multiply-adds':>16}")
        for name, row in costs.items():
            millions, billions = row["parameters"] / 1e6, row["multiply_adds"] / 1e9
            print(f"{name:20}{millions:12.3f} M{billions:14.3f} G")


if __name__ == "__main__":
    run_cli(main)
