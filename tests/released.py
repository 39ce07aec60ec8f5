"""Models as released files hold them."""

import re

import torch
from torch import Tensor

from generator.checkpoints import released_name as released_generator_name
from tokenizer import Tokenizer
from tokenizer.blocks import ResidualBlock
from tokenizer.checkpoints import build, ema_name, read, released_name


def raw_tokenizer(path, sizes=None) -> Tokenizer:
    """The tokenizer of a checkpoint with its raw weights, not their average."""
    content = read(path, sizes)
    raw = {k: v for k, v in content["state_dict"].items() if k.startswith("tokenizer.")}
    return build(content | {"state_dict": raw}, path)


def to_released(tokenizer: Tokenizer, ema: Tokenizer, decay: float = 0.9999) -> dict[str, Tensor]:
    """The released state dict of raw weights and their EMA copy, without `loss.` entries."""
    state: dict[str, Tensor] = {}
    for model, rename in ((tokenizer, released_name), (ema, ema_name)):
        weights = {k: v for k, v in model.state_dict().items() if k != "token_scale"}
        state |= {rename(k): v for k, v in (weights | never_run(model)).items()}
    for module in {name.partition(".")[0] for name in state if name.startswith("ema_")}:
        state[f"{module}.decay"] = torch.tensor(decay)
        state[f"{module}.num_updates"] = torch.tensor(0, dtype=torch.int32)
    return state


def released_generator(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A generator's state dict under the released names."""
    return {released_generator_name(name): weight for name, weight in state.items()}


def never_run(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The released surplus block of each semantic level, as zero convolutions: an identity."""
    surplus: dict[str, Tensor] = {}
    decoder = tokenizer.semantic_decoder
    for i, level in enumerate(decoder.levels if decoder is not None else []):
        name = f"semantic_decoder.levels.{i}.blocks.{len(level.blocks)}"
        width = level.blocks[-1].conv2.out_channels
        for k, v in ResidualBlock(width, width, 0.0, 1).state_dict().items():
            norm = re.match(r"norm\d\.weight", k)
            surplus[f"{name}.{k}"] = torch.ones_like(v) if norm else torch.zeros_like(v)
    return surplus
