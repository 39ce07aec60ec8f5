from __future__ import annotations

import pytest
import torch
from PIL import Image

from common import checkpoint
from common.data import caching
from common.data.caching import Views, cache
from common.data.folders import ImageFolder
from common.data.latents import Latents, read_header
from common.distributed import Process
from common.errors import UserError

ALONE = Process(0, 0, 1, torch.device("cpu"))
HEADER = {"tokenizer": "abc", "class_names": ["a", "b"]}


class Colours:
    """Pictures of one colour, their number."""

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


def write(path, dataset=None, header=HEADER, crops=0, process=ALONE, workers=0):
    views = Views(Colours() if dataset is None else dataset, crops)
    return cache(views, encode, header, process, 3, workers, path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.safetensors"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(caching, "SHARD", 4)


@pytest.fixture
def photographs(tmp_path):
    """Three pictures, four pixels high, whose red grows to the right."""
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    for k in range(3):
        image = Image.new("RGB", (10, 4))
        image.putdata([(20 * x + k, 0, 0) for _ in range(4) for x in range(10)])
        image.save(folder / f"{k}.png")
    return lambda **given: ImageFolder(str(folder.parent), 4, **{"train": True, **given})


def reds(mean):
    return ((mean[:, 0] + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_every_image_is_encoded_in_order(path, small_shards, workers):
    assert write(path, workers=workers)
    found = Latents(path, "abc")
    assert len(found) == 7 and found.class_names == ["a", "b"]
    assert [reds(found[i][0])[0] for i in range(7)] == list(range(7))
    assert [found[i][1] for i in range(7)] == [0, 1, 0, 1, 0, 1, 0]
    assert found.means.shape == (7, 1, 8, 1)
    assert list(path.parent.iterdir()) == [path]


def test_the_file_is_an_ordinary_one(path, small_shards):
    write(path)
    tensors = checkpoint.load(path)
    assert tensors.keys() == {"means", "labels"} and tensors["labels"].dtype == torch.int64
    again = path.with_name("again.safetensors")
    checkpoint.save_safetensors(again, tensors, checkpoint.load_metadata(path))
    assert read_header(again) == read_header(path)
    assert read_header(path)["views"]["images"] == 7


@pytest.mark.parametrize("world", [1, 2])
def test_what_was_stopped_goes_on(path, small_shards, monkeypatch, world):
    """On another number of processes: the second of two encodes what the first one lacks."""
    joined = []
    monkeypatch.setattr(caching, "_join", lambda *_: joined.append(_))
    monkeypatch.setattr(caching.shutil, "rmtree", lambda _: None)
    first = Colours(17)
    write(path, first, process=Process(0, 0, 2, torch.device("cpu")))
    assert set(first.asked) == {*range(4), *range(8, 12), 16}
    monkeypatch.undo()
    monkeypatch.setattr(caching, "SHARD", 4)
    second = Colours(17)
    write(path, second)
    assert set(second.asked) == {0, *range(4, 8), *range(12, 16)}  # 0 for its size
    found = Latents(path, "abc")
    assert [reds(found[i][0])[0] for i in range(17)] == list(range(17))
    assert list(path.parent.iterdir()) == [path]


def test_a_shard_that_was_being_written_is_not_there(path, small_shards):
    """Killed in the middle of it: what follows is encoded again, and nothing else."""

    class Killed(Colours):
        def __getitem__(self, i):
            if i == 6:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    with pytest.raises(KeyboardInterrupt):
        write(path, Killed())
    parts = path.with_name(f"{path.name}.parts")
    assert {p.name for p in parts.iterdir()} == {"settings.json", "000000.safetensors"}
    dataset = Colours()
    write(path, dataset)
    assert set(dataset.asked) == {0, 4, 5, 6}


def test_nothing_is_overwritten(path, small_shards):
    write(path)
    before = path.stat().st_mtime_ns
    assert not write(path)
    other = HEADER | {"tokenizer": "xyz"}
    with pytest.raises(UserError, match=r"tokens.safetensors: is there already, made with tokeni"):
        write(path, header=other)
    with pytest.raises(UserError, match=r"is there already, made with views .*'images': 7"):
        write(path, Colours(8))
    assert path.stat().st_mtime_ns == before


def test_parts_of_others_are_not_mixed(path, small_shards):
    parts = path.with_name(f"{path.name}.parts")
    parts.mkdir()
    caching.claim_folder(parts, HEADER | {"views": "others"})
    with pytest.raises(UserError, match="parts: holds results made with views 'others'"):
        write(path)


def test_both_flips_are_kept_where_training_flips(path, photographs):
    write(path, photographs())
    found = Latents(path, "abc")
    assert found.means.shape == (3, 2, 4, 1)
    for k in range(3):
        assert reds(found.means[k, 0]) == [60 + k, 80 + k, 100 + k, 120 + k]  # the centre
        assert reds(found.means[k, 1]) == [120 + k, 100 + k, 80 + k, 60 + k]
    write(path.with_name("one.safetensors"), photographs(flip=False))
    assert Latents(path.with_name("one.safetensors"), "abc").means.shape == (3, 1, 4, 1)


def test_random_crops_are_kept(path, photographs):
    write(path, photographs(), crops=5)
    means = Latents(path, "abc").means
    assert means.shape == (3, 10, 4, 1)
    starts = {(reds(means[k, 2 * c])[0] - k) // 20 for k in range(3) for c in range(5)}
    assert len(starts) > 2 and starts <= set(range(7))
    for view in range(0, 10, 2):
        assert torch.equal(means[:, view + 1], means[:, view].flip(1))
    with pytest.raises(UserError, match="--crops: given, but this data draws no crops"):
        Views(Colours(), crops=2)


def test_the_data_set_is_left_as_it_was(path, photographs):
    dataset = photographs()
    write(path, dataset)
    assert dataset.flip and dataset.random_crop and dataset.train
