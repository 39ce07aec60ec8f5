from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from common import checkpoint
from common.errors import UserError


def test_a_round_trip_keeps_everything(tmp_path):
    path = tmp_path / "checkpoint-last.pth"
    payload = {"model": {"w": torch.randn(2, 3)}, "epoch": 7, "args": argparse.Namespace(lr=0.1)}
    checkpoint.save(path, payload)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["model"]["w"], payload["model"]["w"])
    assert (loaded["epoch"], loaded["args"].lr) == (7, 0.1)


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("stopped while writing")


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    path, layer = tmp_path / "last.pth", nn.Linear(2, 2)
    checkpoint.save(path, {"model": layer.state_dict()})
    before = path.read_bytes()
    bad = {name: torch.full_like(w, torch.nan) for name, w in layer.state_dict().items()}
    with pytest.raises(UserError, match="weight"):
        checkpoint.save(path, {"model": bad})
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="2 not finite: weight, bias"):
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


def write_pickle_with_code(path: Path) -> None:
    torch.save({"config": Foreign()}, path)


def write_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Path("x")}))


def write_truncated(path: Path) -> None:
    checkpoint.save(path, {"w": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("missing.pth", lambda path: None, "no such checkpoint file"),
        ("folder.ckpt", Path.mkdir, "found a folder, expected a checkpoint file"),
        ("empty.pth", Path.touch, "damaged, or not a checkpoint"),
        ("text.pth", lambda path: path.write_text("<html>not found</html>"), "not a checkpoint"),
        ("cut.pth", write_truncated, "damaged, or not a checkpoint"),
        ("code.pth", write_pickle_with_code, "Foreign"),
        ("pickle.pth", write_plain_pickle, "not a checkpoint"),
        ("list.pth", lambda path: torch.save([1], path), "holds a list, expected a dictionary"),
        ("text.safetensors", lambda path: path.write_text("x" * 99), "safetensors"),
        ("empty.safetensors", Path.touch, "safetensors"),
    ],
)
def test_unusable_files_are_named_with_the_reason(tmp_path, name, write, reason):
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_are_listed_and_nothing_changes():
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = {name: torch.zeros_like(tensor) for name, tensor in before.items() if name > "2"}
    state |= {"3.bias": torch.zeros(5), "3.weight": 4, "head": torch.zeros(1)}
    with pytest.raises(UserError) as error:
        checkpoint.load_weights(net, state, "x.pth")
    message = str(error.value)
    assert message.startswith("x.pth: the weights do not fit Sequential")
    assert "4 missing: 0.weight, 0.bias, 1.weight, 1.bias" in message
    assert "1 unexpected: head" in message
    assert "3.bias (found [5], expected [2])" in message
    assert "3.weight (found int, expected [2, 2])" in message
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_hash_names_weights():
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 3).mT}
    name = checkpoint.weights_hash(state)
    assert name == checkpoint.weights_hash(dict(reversed(state.items())))
    assert name == checkpoint.weights_hash({**state, "b": state["b"].contiguous()})
    assert name != checkpoint.weights_hash({**state, "a": torch.arange(4.0) + 1})
    assert name != checkpoint.weights_hash({"a": state["a"], "c": state["b"]})
