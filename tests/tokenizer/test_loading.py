from __future__ import annotations

import copy

import pytest
import torch

from common import checkpoint
from common.errors import UserError
from tokenizer import load_tokenizer
from tokenizer.loading import RELEASED_SCALE, identity, tokenizer_from_config
from tokenizer.released import to_released


@pytest.fixture
def average(tokenizer):
    """The tokenizer's EMA copy, with other weights and a measured scale."""
    copied = copy.deepcopy(tokenizer)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    copied.token_scale.fill_(0.25)
    return copied


@pytest.fixture
def ours(tokenizer, average, sizes, tmp_path):
    """As Lightning saves it."""
    state = {f"tokenizer.{k}": v for k, v in tokenizer.state_dict().items()}
    state |= {f"ema.model.{k}": v for k, v in average.state_dict().items()}
    state |= {"ema.updates": torch.tensor(3), "objective.discriminator.x": torch.ones(1)}
    checkpoint.save(tmp_path / "ours.ckpt", {"state_dict": state, "tokenizer": sizes, "epoch": 1})
    return tmp_path / "ours.ckpt"


@pytest.fixture
def released(tokenizer, average, tmp_path):
    path = tmp_path / "released.ckpt"
    checkpoint.save(path, {"state_dict": to_released(tokenizer, average)})
    return path


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_our_checkpoint_needs_nothing_else(ours, tokenizer, average):
    loaded = load_tokenizer(ours)
    assert same(loaded, average) and not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert float(loaded.token_scale) == 0.25
    assert same(load_tokenizer(ours, ema=False), tokenizer)
    assert float(load_tokenizer(ours, token_scale=3.0).token_scale) == 3.0


def test_a_released_checkpoint_needs_sizes(released, sizes, tokenizer, average):
    loaded = load_tokenizer(released, sizes)
    assert float(loaded.token_scale) == pytest.approx(RELEASED_SCALE)
    loaded.token_scale.copy_(average.token_scale)
    assert same(loaded, average)
    raw = load_tokenizer(released, sizes, token_scale=1.0, ema=False)
    assert same(raw, tokenizer)
    with pytest.raises(UserError, match=r"released\.ckpt: carries no sizes of its own"):
        load_tokenizer(released)
    sizes["embed_dim"] = 7
    with pytest.raises(UserError, match=r"has shape .*, the config asks for"):
        load_tokenizer(released, sizes)
    sizes["ddconfig"]["ch"] = "wide"
    with pytest.raises(UserError, match=r"ddconfig\.ch: found 'wide', expected int"):
        load_tokenizer(released, sizes)
    del sizes["ddconfig"]
    with pytest.raises(UserError, match=r"model\.params\.ddconfig: missing"):
        load_tokenizer(released, sizes)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_none(ours, scale):
    with pytest.raises(UserError, match=r"--vae_norm: found .*, expected a number above 0"):
        load_tokenizer(ours, token_scale=scale)


def test_the_tokenizer_of_a_config(ours, released, sizes, average, tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(f"model: {{params: {{ckpt_path: {ours}, lossconfig: {{}}}}}}\ndata: {{}}")
    assert same(tokenizer_from_config(path), average)
    loaded = tokenizer_from_config(path, 2.0, ["model.params.embed_dim=6"])
    assert float(loaded.token_scale) == 2.0
    for override, message in [
        ("model.params.ckpt_path=null", r"model\.params\.ckpt_path: missing among ckpt_path, loss"),
        ("model.params.ckpt_path=[1]", r"model\.params\.ckpt_path: missing"),
        ("model.params.ckpt_path=no.ckpt", r"no\.ckpt: no such checkpoint file"),
        ("model.params=null", r"model\.params: found None, expected ckpt_path"),
        ("modle.x=1", "modle: unknown key; did you mean 'model'"),
        (f"model.params.ckpt_path={released}", "carries no sizes of its own"),
    ]:
        with pytest.raises(UserError, match=message):
            tokenizer_from_config(path, overrides=[override])


def test_an_identity_is_that_of_the_weights(tokenizer, average):
    name = identity(tokenizer)
    tokenizer.token_scale.fill_(9.0)
    assert identity(tokenizer) == name != identity(average)
    assert "token_scale" in tokenizer.state_dict()


def test_a_misspelt_key_of_a_config(ours, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"model:\n  params:\n    ckpt_path: {ours}\n")
    with pytest.raises(UserError, match=r"model.params.ckptpath: unknown key; did you mean"):
        tokenizer_from_config(path, overrides=["model.params.ckptpath=x"])
