import argparse
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from common import checkpoint
from common.errors import UserError


def test_a_round_trip_keeps_everything(tmp_path):
    path = tmp_path / "checkpoint-last.pth"
    w, args = torch.randn(2, 3), argparse.Namespace(lr=0.1)
    checkpoint.save(path, {"model": {"w": w}, "args": args})
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["model"]["w"], w) and loaded["args"] == args


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    path, layer = tmp_path / "last.pth", nn.Linear(2, 2)
    checkpoint.save(path, {"model": layer.state_dict()})
    before = path.read_bytes()
    bad = {name: torch.full_like(w, torch.nan) for name, w in layer.state_dict().items()}
    with pytest.raises(UserError, match="weight"):
        checkpoint.save(path, {"model": bad})
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="not finite: weight, bias"):
        checkpoint.load_weights(layer, bad, "x.pth")


@pytest.mark.parametrize("name", ["last.pth", "model.safetensors"])
def test_a_flipped_bit_is_noticed(tmp_path, name):
    """Wherever it could change a weight; torch pads its archives by bytes that nobody reads."""
    path, weights = tmp_path / name, {"w": torch.randn(300)}
    (checkpoint.save if name == "last.pth" else checkpoint.save_safetensors)(path, weights)
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert torch.equal(checkpoint.load(path)["w"], weights["w"])
        except UserError:
            continue
        assert name == "last.pth"


def test_lightning_1_keys_callbacks_by_their_class(tmp_path):
    path = tmp_path / "released.ckpt"
    torch.save({"callbacks": {pl.callbacks.ModelCheckpoint: {"best": None}}, "epoch": 3}, path)
    assert checkpoint.load(path)["epoch"] == 3


def test_safetensors_round_trip_with_tied_and_strided_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    w = torch.randn(4, 6)
    checkpoint.save_safetensors(path, {"w": w, "tied": w, "turned": w.T}, {"scale": "0.5"})
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["tied"], w) and torch.equal(loaded["turned"], w.T)
    assert checkpoint.load_metadata(path) == {"scale": "0.5"}


class Foreign:
    pass


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("missing.pth", lambda path: None),
        ("empty.pth", Path.touch),
        ("text.pth", lambda path: path.write_text("<html>not found</html>")),
        ("Foreign.pth", lambda path: torch.save({"config": Foreign()}, path)),
        ("list.pth", lambda path: torch.save([1], path)),
        ("text.safetensors", lambda path: path.write_text("x" * 99)),
        ("empty.safetensors", Path.touch),
    ],
)
def test_unusable_files_are_named_in_one_line(tmp_path, name, write):
    write(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: [^\n]*$"):
        checkpoint.load(tmp_path / name)


def test_a_hash_names_weights():
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 3).mT}
    name = checkpoint.weights_hash(state)
    assert name == checkpoint.weights_hash(dict(reversed(state.items())))
    assert name == checkpoint.weights_hash({**state, "b": state["b"].contiguous()})
    assert name != checkpoint.weights_hash({**state, "a": torch.arange(4.0) + 1})
    assert name != checkpoint.weights_hash({"a": state["a"], "c": state["b"]})
