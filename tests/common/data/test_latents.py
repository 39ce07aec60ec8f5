from __future__ import annotations

import json
import multiprocessing
import os
import pickle

import pytest
import torch
from PIL import Image

from common import checkpoint, images
from common.data.caching import Views, cache
from common.data.folders import Draw, ImageFolder
from common.data.latents import Latents, weights_hash
from common.distributed import Process
from common.errors import UserError

HEADER = {"tokenizer": "abc", "class_names": ["a", "b"]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.safetensors"


def write(path, means, crops=1, flips=False):
    """Means [N, V, L, C], of classes 0, 1, 0, …"""
    header = HEADER | {"views": {"crops": crops, "flips": flips}}
    tensors = {"means": means, "labels": torch.arange(len(means)) % 2}
    checkpoint.save_safetensors(path, tensors, {"header": json.dumps(header)})


def test_a_file_gives_back_what_was_saved(path):
    means = torch.randn(4, 1, 2, 3)
    write(path, means, crops=0)
    found = Latents(path, "abc")
    assert len(found) == 4 and found.class_names == ["a", "b"]
    for item in (3, Draw(3, 77)):
        mean, label = found[item]
        assert torch.equal(mean, means[3, 0]) and label == 1


def test_training_takes_a_view_at_random(path):
    means = torch.arange(12.0).view(2, 6, 1, 1)
    write(path, means, crops=3, flips=True)
    found = Latents(path, "abc", seed=1)
    taken = torch.tensor([int(found[Draw(1, number)][0]) - 6 for number in range(600)])
    shares = taken.bincount(minlength=6) / 600
    assert shares.tolist() == pytest.approx([1 / 6] * 6, abs=0.05)
    again = Latents(path, "abc", seed=1)
    assert [int(again[Draw(1, k)][0]) - 6 for k in range(9)] == taken[:9].tolist()
    assert int(found[1][0]) == 6


def test_flips_are_those_of_the_pictures(path, tmp_path):
    """Where there is nothing to crop, a draw of cached tokens is that of the pictures."""
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    image = Image.new("RGB", (4, 4))
    image.putdata([(60 * x, 0, 0) for _ in range(4) for x in range(4)])
    image.save(folder / "0.png")
    pictures = ImageFolder(str(folder.parent), 4, train=True, seed=9)

    def encode(pictures):
        return pictures[:, 0, 0, :, None].contiguous()

    alone = Process(0, 0, 1, torch.device("cpu"))
    cache(Views(pictures), encode, HEADER, alone, 1, 0, path)
    found, kinds = Latents(path, "abc", seed=9), set()
    for number in range(20):
        draw = Draw(0, number)
        expected = encode(images.to_float(pictures[draw][0][None]))[0]
        assert torch.equal(found[draw][0], expected)
        kinds.add(float(expected[0]))
    assert len(kinds) == 2


def test_files_that_do_not_fit_are_refused(path):
    write(path, torch.randn(4, 1, 2, 3))
    with pytest.raises(UserError, match="tokens of tokenizer abc, expected those of xyz"):
        Latents(path, "xyz")
    with pytest.raises(UserError, match="no such checkpoint file"):
        Latents(path.with_name("y.safetensors"), "abc")
    checkpoint.save_safetensors(path, {"weight": torch.ones(2)})
    with pytest.raises(UserError, match="not a file of cached tokens"):
        Latents(path, "abc")


def memory():
    """Bytes of this process that are not pages of files."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_tokens_stay_in_the_file(path):
    """Read or pickled for a worker, 64 MB of them take no memory."""
    write(path, torch.ones(1000, 1, 16, 1024))
    before = memory()
    found = Latents(path, "abc")
    assert sum(float(found[Draw(i, i)][0].sum()) for i in range(0, 1000, 9)) == 112 * 16 * 1024
    assert memory() - before < 16e6
    pickled = pickle.dumps(found)
    assert len(pickled) < 10_000
    assert torch.equal(pickle.loads(pickled).means[5], found.means[5])


def test_workers_that_are_not_forked_read_it(path):
    write(path, torch.randn(7, 1, 2, 3))
    context = multiprocessing.get_context("spawn")
    loader = torch.utils.data.DataLoader(
        Latents(path, "abc"), 7, num_workers=1, multiprocessing_context=context
    )
    ((means, labels),) = loader
    assert means.shape == (7, 2, 3) and labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_a_hash_names_weights():
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    name = weights_hash(state)
    assert name == weights_hash(dict(reversed(state.items())))
    assert name == weights_hash({k: v.mT.contiguous().mT for k, v in state.items() if k == "b"}
                                | {"a": state["a"]})  # fmt: skip
    assert name != weights_hash({**state, "a": torch.arange(4.0) + 1})
    assert name != weights_hash({"a": state["a"], "c": state["b"]})
