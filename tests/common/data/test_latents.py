import dataclasses
import json
import pickle

import pytest
import torch
from PIL import Image

from common import checkpoint
from common.data import latents
from common.data.folders import ImageFolder
from common.data.latents import LatentDataset, LatentHeader, cache_latents
from common.data.sampler import Draw
from common.distributed import Process
from common.errors import UserError

ALONE = Process(0, 0, 1, torch.device("cpu"))
HEADER = LatentHeader("abc", 0.5, 2.5, 4, 1, ["a", "b"])


class Colours:
    """Images of one colour, their number."""

    def __init__(self, count=7):
        self.count, self.asked = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.asked.append(i)
        return torch.full((3, 4, 8), i, dtype=torch.uint8), i % 2


def encode(pictures):
    """A column a pixel, of one channel: the red of the first row."""
    return pictures[:, 0, 0, :, None].contiguous()


def cache(path, dataset=None, header=HEADER, process=ALONE, workers=0):
    dataset = Colours() if dataset is None else dataset
    return cache_latents(dataset, encode, header, process, 3, workers, path)


def write(path, means, flips=False, **changes):
    """Means [N, V, L, C], of classes 0, 1, 0, …"""
    filled = dataclasses.replace(HEADER, images=len(means), width=4, flips=flips)
    header = dataclasses.asdict(filled) | changes
    tensors = {"means": means, "labels": torch.arange(len(means)) % 2}
    checkpoint.save_safetensors(path, tensors, {"header": json.dumps(header)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.safetensors"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 4)


@pytest.fixture
def photographs(tmp_path):
    """Three images, four pixels high, whose red grows to the right."""
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    for k in range(3):
        image = Image.new("RGB", (10, 4))
        image.putdata([(20 * x + k, 0, 0) for _ in range(4) for x in range(10)])
        image.save(folder / f"{k}.png")
    return lambda **given: ImageFolder(str(folder.parent), size=4, **{"train": True, **given})


def reds(mean):
    return ((mean[:, 0] + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_every_image_is_encoded_in_order(path, small_shards, workers):
    assert cache(path, workers=workers)
    found = LatentDataset(path, "abc")
    assert len(found) == 7 and found.class_names == ["a", "b"]
    assert [reds(found[i][0])[0] for i in range(7)] == list(range(7))
    assert [found[i][1] for i in range(7)] == [0, 1, 0, 1, 0, 1, 0]
    assert found.means.shape == (7, 1, 8, 1)
    assert list(path.parent.iterdir()) == [path]


def test_what_was_stopped_goes_on(path, small_shards, monkeypatch):
    """On another number of processes: the second of two encodes what the first one lacks."""
    join = latents.checkpoint.save_safetensors

    def killed(where, *given):
        if where == path:
            raise KeyboardInterrupt
        join(where, *given)

    monkeypatch.setattr(latents.checkpoint, "load", lambda _: {"means": None, "labels": None})
    monkeypatch.setattr(latents.checkpoint, "save_safetensors", killed)
    first = Colours(17)
    with pytest.raises(KeyboardInterrupt):
        cache(path, first, process=Process(0, 0, 2, torch.device("cpu")))
    assert set(first.asked) == {*range(4), *range(8, 12), 16}
    monkeypatch.undo()
    monkeypatch.setattr(latents, "SHARD", 4)
    second = Colours(17)
    cache(path, second)
    assert set(second.asked) == {0, *range(4, 8), *range(12, 16)}  # 0 for its size
    found = LatentDataset(path, "abc")
    assert [reds(found[i][0])[0] for i in range(17)] == list(range(17))
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_overwritten(path, small_shards):
    cache(path)
    before = path.stat().st_mtime_ns
    assert not cache(path)
    other = dataclasses.replace(HEADER, tokenizer="xyz")
    with pytest.raises(UserError, match=r"tokens\.safetensors: made with tokeni"):
        cache(path, header=other)
    with pytest.raises(UserError, match="made with images 7, not 8"):
        cache(path, Colours(8))
    assert path.stat().st_mtime_ns == before


def test_both_flips_are_kept_where_training_flips(path, photographs):
    cache(path, photographs())
    found = LatentDataset(path, "abc")
    assert found.means.shape == (3, 2, 4, 1)
    for k in range(3):
        assert reds(found.means[k, 0]) == [60 + k, 80 + k, 100 + k, 120 + k]  # the centre
        assert reds(found.means[k, 1]) == [120 + k, 100 + k, 80 + k, 60 + k]


def test_training_takes_a_flip_at_random(path):
    means = torch.arange(4.0).view(2, 2, 1, 1)
    write(path, means, flips=True)
    found = LatentDataset(path, "abc", seed=1)
    taken = [int(found[Draw(1, number)][0]) - 2 for number in range(600)]
    assert sum(taken) / 600 == pytest.approx(0.5, abs=0.05)
    again = LatentDataset(path, "abc", seed=1)
    assert [int(again[Draw(1, k)][0]) - 2 for k in range(9)] == taken[:9]
    assert int(found[1][0]) == 2


def test_pickled_for_a_worker_tokens_stay_in_the_file(path):
    write(path, torch.randn(100, 1, 16, 8))
    pickled = pickle.dumps(LatentDataset(path, "abc"))
    assert len(pickled) < 10_000
    assert torch.equal(pickle.loads(pickled).means, LatentDataset(path).means)


LIES = {"kind": "x", "token_scale": float("nan"), "class_names": ["a"], "images": 0, "more": 1}


@pytest.mark.parametrize("key", LIES)
def test_a_header_that_lies_is_refused(path, key):
    write(path, torch.randn(4, 1, 2, 3), **{key: LIES[key]})
    with pytest.raises(UserError, match=r"tokens\.safetensors"):
        LatentDataset(path)


def test_files_that_do_not_fit_are_refused(path):
    write(path, torch.randn(4, 1, 2, 3))
    with pytest.raises(UserError, match="tokenizer abc, expected of xyz"):
        LatentDataset(path, "xyz")
    write(path, torch.randn(4, 2, 2, 3))
    with pytest.raises(UserError, match="damaged"):
        LatentDataset(path)
    checkpoint.save_safetensors(path, {"weight": torch.ones(2)})
    with pytest.raises(UserError, match="not a file of cached tokens"):
        LatentDataset(path)
