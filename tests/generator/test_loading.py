from __future__ import annotations

import argparse
from dataclasses import asdict

import pytest
import torch

from common import checkpoint
from common.errors import UserError
from generator.flags import FIELDS
from generator.loading import load_generator
from generator.released import to_released


def flags(**given):
    return argparse.Namespace(**{"model": None, **dict.fromkeys(FIELDS), **given})


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
    model, average = pair
    payload = {"model": model.state_dict(), "model_ema": average.state_dict()}
    payload["generator"] = asdict(model.config)
    payload |= {"class_names": list("abcde"), "tokenizer": "abc", "token_scale": 0.5}
    checkpoint.save(tmp_path / "ours.pth", payload)
    return tmp_path / "ours.pth"


@pytest.fixture
def released(pair, tmp_path):
    states = [to_released(m.state_dict()) for m in pair]
    payload = dict(zip(("model", "model_ema"), states, strict=True))
    checkpoint.save(tmp_path / "released.pth", {**payload, "args": argparse.Namespace(x=1)})
    return tmp_path / "released.pth"


def same(loaded, model):
    return all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.model.state_dict().items())


def test_our_checkpoint_brings_its_sizes_and_both_sets_of_weights(ours, pair):
    model, average = pair
    loaded = load_generator(ours, flags())
    assert loaded.model.config == model.config and not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert same(loaded, average) and not same(loaded, model)
    assert same(load_generator(ours, flags(), ema=False), model)
    assert loaded.class_names == list("abcde")
    assert (loaded.tokenizer, loaded.token_scale) == ("abc", 0.5)
    loaded.check_tokenizer("abc", ours)
    with pytest.raises(UserError, match=r"on tokens of tokenizer abc, but the one of .* is xyz"):
        loaded.check_tokenizer("xyz", ours)


def test_a_released_checkpoint_takes_its_sizes_from_flags(released, pair):
    given = {"width": 32, "depth": 2, "heads": 4, "buffer_size": 3}
    given |= {"diffloss_w": 16, "diffloss_d": 2}
    loaded = load_generator(released, flags(**given))
    assert same(loaded, pair[1]) and loaded.class_names == list("01234")
    loaded.check_tokenizer("any", released)
    with pytest.raises(UserError, match="--class_num: found 7, expected 5"):
        load_generator(released, flags(**given, class_num=7))
    with pytest.raises(UserError, match=r"the given sizes ask for \[2, "):
        load_generator(released, flags(**{**given, "diffloss_w": 2}))


def test_what_is_no_generator_is_named(ours, tmp_path):
    with pytest.raises(UserError, match="--depth: found 3, but the checkpoint has 2"):
        load_generator(ours, flags(depth=3))
    for payload, message in [
        ({"state_dict": {}}, "has no model_ema; expected a checkpoint of the generator"),
        ({"model_ema": {"a": torch.ones(1)}}, "holds no generator under names known here"),
        ({"model_ema": {"fake_latent": torch.ones(1)}}, "has no class_emb.weight; expected"),
    ]:
        checkpoint.save(tmp_path / "x.pth", payload)
        with pytest.raises(UserError, match=rf"x\.pth: {message}"):
            load_generator(tmp_path / "x.pth", flags())
