from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from generator.model import FLOW_HEADS, SIZES, Generator, GeneratorConfig
from generator.released import from_released, is_released, released_name, to_released

KEYS = sorted((Path(__file__).parents[1] / "reference" / "keys").glob("generator_*.json"))


def shapes(state):
    return {name: list(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("path", KEYS, ids=lambda path: path.stem)
def test_every_released_weight_has_its_place(path):
    """Of the full-sized models, without memory for their values."""
    released = json.loads(path.read_text())
    name, classes = re.fullmatch(r"generator_(\w+)_(\d+)classes", path.stem).groups()
    with torch.device("meta"):
        state = {k: torch.empty(shape) for k, shape in released.items()}
        sizes = {**SIZES[name], **FLOW_HEADS[name], "channels": 256, "classes": int(classes)}
        model = Generator(GeneratorConfig(**sizes))
        converted = from_released(state, model)
        assert shapes(converted) == shapes(model.state_dict())
        assert shapes(to_released(model.state_dict())) == released
    assert is_released(state) and not is_released(converted)


def test_all_large_sizes_are_there():
    named = {re.sub(r"generator_|_\d+classes", "", path.stem) for path in KEYS}
    assert named == SIZES.keys() - {"tiny_model"}


def test_weights_come_back(build):
    model, other = build(), build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(from_released(to_released(model.state_dict()), other))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_wrong_weights_are_named(model):
    state = to_released(model.state_dict())
    name = released_name("layers.1.cross_attention.q.weight")
    assert name == "encoder_blocks.1.attn2.qkv.weight"

    def refuse(changed, message):
        with pytest.raises(UserError, match=message):
            from_released(changed, model)

    refuse({k: v for k, v in state.items() if k != name}, f"1 weights missing.* {name}$")
    refuse({**state, name: torch.zeros(3)}, rf"{name} has shape \[3\].* ask for \[32, 32\]")
    refuse({**state, "mask_token": torch.zeros(1)}, "1 weights without a place.* mask_token$")
