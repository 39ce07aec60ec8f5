from __future__ import annotations

import pytest
import torch

from common import checkpoint
from common.datasets import Draw
from common.distributed import Process
from common.errors import UserError
from common.latents import Latents, encode_all, save_latents, weights_hash

ALONE = Process(0, 0, 1, torch.device("cpu"))
HEADER = {"tokenizer": "abc", "class_names": ["a", "b"]}


class Pictures:
    """Seven pictures, each of one colour, its number."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        if i >= 7:
            raise IndexError
        return torch.full((3, 4, 8), i, dtype=torch.uint8), i % 2


def encode(pictures):
    """Two columns of one channel: the colours."""
    return pictures[:, :1, 0, :2].transpose(1, 2)


def test_every_image_is_encoded_in_order(tmp_path):
    means, labels = encode_all(Pictures(), encode, ALONE, 3, 0, tmp_path / "x.safetensors")
    assert means.shape == (7, 2, 1)
    assert ((means[:, 0, 0] + 1) * 127.5).round().tolist() == list(range(7))
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert list(tmp_path.iterdir()) == []


def test_more_processes_than_images(tmp_path):
    process = Process(0, 0, 8, torch.device("cpu"))
    with pytest.raises(UserError, match="found 7 images for 8 processes, expected one for each"):
        encode_all(Pictures(), encode, process, 3, 0, tmp_path / "x")


def test_a_file_gives_back_what_was_saved(tmp_path):
    means, labels = torch.randn(4, 2, 3), torch.tensor([0, 1, 1, 0])
    save_latents(tmp_path / "x.safetensors", means, labels, HEADER)
    latents = Latents(tmp_path / "x.safetensors", "abc")
    assert len(latents) == 4 and latents.class_names == ["a", "b"]
    for item in (2, Draw(2, 77)):
        mean, label = latents[item]
        assert torch.equal(mean, means[2]) and label == 1


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_latents(path, torch.randn(4, 2, 3), torch.zeros(4, dtype=torch.int64), HEADER)
    with pytest.raises(UserError, match="tokens of tokenizer abc, expected those of xyz"):
        Latents(path, "xyz")
    with pytest.raises(UserError, match="no such checkpoint file"):
        Latents(tmp_path / "y.safetensors", "abc")
    checkpoint.save_safetensors(path, {"weight": torch.ones(2)})
    with pytest.raises(UserError, match="not a file of cached tokens"):
        Latents(path, "abc")


def test_a_hash_names_weights():
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    name = weights_hash(state)
    assert name == weights_hash(dict(reversed(state.items())))
    assert name == weights_hash({k: v.mT.contiguous().mT for k, v in state.items() if k == "b"}
                                | {"a": state["a"]})  # fmt: skip
    assert name != weights_hash({**state, "a": torch.arange(4.0) + 1})
    assert name != weights_hash({"a": state["a"], "c": state["b"]})
