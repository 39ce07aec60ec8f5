"""Parameters and multiply-adds of the released tokenizer and of the generator's named sizes, each
also on the grid of tokens of the paper's 2-D baseline.

    python scripts/model_table.py

Multiply-adds are those of matrix products, convolutions and attention: of columns to those in their
window, of a grid's tokens to all. Generator: 1000 classes, 16 condition tokens, tokens of 256
channels; one training forward of one image, that is 16 tokens through the transformer and 4 flow
draws of each through the head. (Training itself spares the transformer the last one, which predicts
nothing.) That of 256 tokens has 16 channels and 64 condition tokens, as MAR has. Tokenizer: one
square image, encoded and decoded, with the semantic decoder.
"""

from collections.abc import Callable
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
GRID: dict[str, Any] = {"grid": 4, "window": 0}
FINE = {"grid": 16, "window": 0, "channels": 16, "context_tokens": 64}


def cost(module: nn.Module, forward: Callable[[], Any]) -> dict[str, int]:
    """Parameters of a part, and multiply-adds of its forward pass."""
    with FlopCounterMode(display=False) as counter:
        forward()
    parameters = sum(p.numel() for p in module.parameters())
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2}


def generator_cost(name: str, **changes: int) -> dict[str, int]:
    """One of the generator's named sizes, but for `changes`."""
    sizes = {**SIZES[name], "channels": CHANNELS, "classes": CLASSES, **changes}
    config = GeneratorConfig(**sizes)
    model, length = Generator(config).eval(), config.grid**2 or COLUMNS
    tokens, labels = torch.empty(1, length, config.channels), torch.zeros(1, dtype=torch.long)

    def forward() -> None:
        hidden = model.hidden(tokens, model.read_condition(labels))[0, :-1]  # [L, D]
        times = torch.empty(DRAWS * length)
        model.head(tokens[0].repeat(DRAWS, 1), times, hidden.repeat(DRAWS, 1))

    found = cost(model, forward)
    if config.window:  # of which the counter takes no notice
        unseen = ~model.layout.mask(length, device=torch.device("cpu"))
        found["multiply_adds"] -= 2 * config.depth * config.width * int(unseen.sum())
    return found


def tokenizer_cost(token_grid: int = 0) -> dict[str, int]:
    """The released tokenizer, or one of its size with a grid of tokens."""
    model = untrained(RELEASED, [f"model.params.ddconfig.token_grid={token_grid}"])
    image = torch.empty(1, 3, model.height, model.height)
    return cost(model, lambda: model.decode_with_semantics(model.encode(image).mean))


def main() -> None:
    cli.parse(cli.new_parser(__doc__))
    with torch.device("meta"):
        table = {"tokenizer": tokenizer_cost(), "tokenizer, 4 x 4": tokenizer_cost(4)}
        table |= {name: generator_cost(name) for name in SIZES}
        table |= {f"{name}, 4 x 4": generator_cost(name, **GRID) for name in SIZES}
        table["base_model, 16 x 16"] = generator_cost("base_model", **FINE)
    print(f"{'':20}{'parameters':>14}{'multiply-adds':>16}")
    for name, row in table.items():
        millions, billions = row["parameters"] / 1e6, row["multiply_adds"] / 1e9
        print(f"{name:20}{millions:12.3f} M{billions:14.3f} G")


if __name__ == "__main__":
    run_cli(main)
