import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.errors import UserError
from generator.checkpoints import from_released, load_generator
from generator.config import SIZES, GeneratorConfig
from generator.model import Generator

from ..released import released_generator

KEYS = sorted((Path(__file__).parents[1] / "reference" / "keys").glob("generator_*.json"))


@pytest.fixture
def pair(build):
    """A model, and its average with other weights."""
    average = build()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    return build(), average


@pytest.fixture
def ours(pair, tmp_path):
    payload = dict(zip(("model", "model_ema"), (m.state_dict() for m in pair), strict=True))
    payload |= {"generator": asdict(pair[0].config), "data": {"images": 9, "columns": 8}}
    payload |= {"class_names": list("abcde"), "tokenizer": "abc", "token_scale": 0.5}
    checkpoint.save(tmp_path / "ours.pth", payload)
    return tmp_path / "ours.pth"


def same(loaded, model):
    return all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.model.state_dict().items())


def test_our_checkpoint_brings_its_sizes_and_both_sets_of_weights(ours, pair):
    model, average = pair
    loaded = load_generator(ours)
    assert loaded.model.config == model.config and not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert same(loaded, average) and not same(loaded, model)
    assert same(load_generator(ours, asdict(model.config), ema=False), model)
    assert (loaded.class_names, loaded.tokenizer) == (list("abcde"), "abc")
    assert (loaded.token_scale, loaded.columns) == (0.5, 8)
    loaded.check_tokenizer("abc")
    with pytest.raises(UserError):
        loaded.check_tokenizer("xyz")
    with pytest.raises(UserError, match="--depth"):
        load_generator(ours, {"depth": 3})


def test_a_released_checkpoint_needs_its_sizes(pair, tmp_path):
    states = [released_generator(m.state_dict()) for m in pair]
    payload = dict(zip(("model", "model_ema"), states, strict=True))
    path = tmp_path / "released.pth"
    checkpoint.save(path, {**payload, "args": argparse.Namespace(x=1)})
    given = {"width": 32, "depth": 2, "heads": 4, "context_tokens": 3}
    given |= {"head_width": 16, "head_depth": 2}
    loaded = load_generator(path, given)
    assert same(loaded, pair[1]) and loaded.class_names == list("01234")
    loaded.check_tokenizer("any")
    for changed in ({**given, "classes": 7}, {**given, "head_width": 2}, {}):
        with pytest.raises(UserError):
            load_generator(path, changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"class_names": ["a"]},
        {"model_ema": 3},
        {"generator": {"width": "x"}},
        {"token_scale": "x"},
        {"epoch": "x"},
        {"data": 3},
        {"model_ema": "not finite"},
    ],
    ids=str,
)
def test_what_is_no_whole_generator_is_refused(ours, changed):
    state = checkpoint.load(ours)
    if changed == {"model_ema": "not finite"}:
        state["model_ema"]["token_in.bias"][0] = float("nan")
        changed = {}
    torch.save(state | changed, ours)
    with pytest.raises(UserError, match=str(ours)):
        load_generator(ours)


@pytest.mark.parametrize("path", KEYS, ids=lambda path: path.stem)
def test_every_released_weight_has_its_place(path):
    """Of the full-sized models, without memory for their values."""

    def shapes(state):
        return {name: list(tensor.shape) for name, tensor in state.items()}

    released = json.loads(path.read_text())
    name, classes = re.fullmatch(r"generator_(\w+)_(\d+)classes", path.stem).groups()
    with torch.device("meta"):
        state = {k: torch.empty(shape) for k, shape in released.items()}
        sizes = {**SIZES[name], "channels": 256, "classes": int(classes)}
        model = Generator(GeneratorConfig(**sizes))
        converted = from_released(state, model)
        assert shapes(converted) == shapes(model.state_dict())
        assert shapes(released_generator(model.state_dict())) == released
