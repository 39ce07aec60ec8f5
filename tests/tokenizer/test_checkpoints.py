"""Tokenizers from files: of our training, exported, released."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from common import checkpoint
from common.errors import UserError
from tokenizer import Tokenizer, load_tokenizer
from tokenizer.checkpoints import build, read
from tokenizer.train import AtomicCheckpoints

from ..released import raw_tokenizer, to_released

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture
def pair(sizes):
    """A tokenizer and one that stands for its average."""
    torch.manual_seed(1)
    return Tokenizer(**sizes), Tokenizer(**sizes)


def same(found, expected):
    """Whether all weights are equal, but for the scale of the tokens."""
    pairs = zip(found.parameters(), expected.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_names_and_shapes_are_those_of_the_released_checkpoint():
    path = REFERENCE / "configs" / "second_stage_tokenizer_config.yaml"
    params = yaml.safe_load(path.read_text())["model"]["params"]
    names = ("ddconfig", "embed_dim", "std", "sematicconfig", "post_channels")
    with torch.device("meta"):
        tokenizer = Tokenizer(**{k: params[k] for k in names})
        state = to_released(tokenizer, tokenizer)
    expected = json.loads((REFERENCE / "keys" / "tokenizer.json").read_text())
    assert {k: list(v.shape) for k, v in state.items()} == expected


def test_a_released_file_with_its_yaml(pair, sizes, tmp_path):
    raw, average = pair
    state = to_released(raw, average) | {"loss.logvar": torch.zeros(())}
    checkpoint.save(tmp_path / "tokenizer.ckpt", {"state_dict": state})
    params = {**sizes, "ckpt_path": str(tmp_path / "tokenizer.ckpt")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    found = load_tokenizer(tmp_path / "config.yaml")
    assert same(found, average)
    assert same(raw_tokenizer(tmp_path / "tokenizer.ckpt", sizes), raw)
    assert float(found.token_scale) == pytest.approx(0.05493)
    assert float(load_tokenizer(tmp_path / "config.yaml", token_scale=2.0).token_scale) == 2
    with pytest.raises(UserError, match="sizes"):
        load_tokenizer(tmp_path / "tokenizer.ckpt")
    with pytest.raises(UserError, match="vae_norm"):
        load_tokenizer(tmp_path / "config.yaml", token_scale=float("nan"))


def test_weights_that_fit_nowhere_are_named(pair, sizes, tmp_path):
    state = to_released(*pair)
    moved = state.pop("ema_encoder.conv_inweight")
    path = tmp_path / "tokenizer.ckpt"
    checkpoint.save(path, state)
    with pytest.raises(UserError, match=r"encoder\.conv_in\.weight"):
        build(read(path, sizes), path)
    checkpoint.save(path, state | {"ema_encoder.conv_inweight": moved, "more": moved})
    with pytest.raises(UserError, match="more"):
        build(read(path, sizes), path)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": [torch.zeros(1)]},
        {"state_dict": {"encoder.conv_in.weight": torch.zeros(1)}, "tokenizer": [3]},
    ],
)
def test_what_holds_no_weights_by_name_is_refused(content, sizes, tmp_path):
    """Wherever such a file is opened: by the scripts, and to go on from."""
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, content)
    for opened in (lambda: read(path, sizes), lambda: AtomicCheckpoints().load_checkpoint(path)):
        with pytest.raises(UserError, match=r"last\.ckpt"):
            opened()
