from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.data.folders import ImageFolder, Paths
from common.data.sampler import Draw, DrawSampler
from common.errors import UserError


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Three classes, one of them nested, with many kinds of pictures."""
    root = tmp_path / "pictures"
    write(root / "10" / "a.jpg", noise(40, 60), quality=90)
    write(root / "10" / "grey.JPEG", noise(40, 60).convert("L"))
    write(root / "2" / "deep" / "er" / "palette.png", noise(50, 33).convert("P"))
    write(root / "2" / "sixteen.png", Image.new("I;16", (40, 40), 257 * 9))
    write(root / "cat" / "cmyk.jpg", noise(37, 80).convert("CMYK"))
    write(root / "cat" / "clear.png", noise(37, 37).convert("RGBA"))
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "cat" / "._a.jpg").write_text("left by another system")
    (root / ".hidden").mkdir()
    return root


def damage(path):
    path.write_bytes(path.read_bytes()[:300])


def test_labels_follow_the_names_as_strings(folder):
    data = ImageFolder(folder, 32)
    assert data.class_names == ["10", "2", "cat"]
    assert [data[i][1] for i in range(len(data))] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("width", [None, 16, 64])
def test_every_kind_of_picture_has_the_shape_asked_for(folder, train, width):
    data = ImageFolder(folder, 32, train=train, width=width)
    for i in range(len(data)):
        image, _ = data[i]
        assert image.shape == (3, 32, width or 32)
        assert image.dtype == torch.uint8 and image.is_contiguous()


def test_a_picture_of_the_right_size_is_not_touched(tmp_path):
    picture = noise(32, 32)
    write(tmp_path / "a" / "x.png", picture)
    image, _ = ImageFolder(tmp_path, 32)[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(picture))


def test_a_draw_depends_on_its_number_and_nothing_else(folder):
    data = ImageFolder(folder, 24, train=True, seed=5)
    again = ImageFolder(folder, 24, train=True, seed=5)
    other_seed = ImageFolder(folder, 24, train=True, seed=6)
    draws = [Draw(0, number) for number in range(8)]
    images = [data[draw][0] for draw in draws]
    for draw, image in reversed(list(zip(draws, images, strict=True))):
        assert torch.equal(again[draw][0], image)
    assert any(not torch.equal(images[0], image) for image in images[1:])
    assert any(not torch.equal(other_seed[d][0], x) for d, x in zip(draws, images, strict=True))


def test_flips_are_half_of_the_draws_and_can_be_left_out(tmp_path):
    picture = noise(16, 16)
    write(tmp_path / "a" / "x.png", picture)
    upright = torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def flipped(data):
        images = [data[Draw(0, n)][0] for n in range(200)]
        assert all(torch.equal(x, upright) or torch.equal(x, upright.flip(2)) for x in images)
        return sum(torch.equal(x, upright.flip(2)) for x in images)

    assert 70 < flipped(ImageFolder(tmp_path, 16, train=True)) < 130
    assert flipped(ImageFolder(tmp_path, 16, train=True, flip=False)) == 0
    assert flipped(ImageFolder(tmp_path, 16)) == 0


def test_an_unreadable_picture_is_replaced_logged_once_and_counted(folder, caplog):
    damage(folder / "10" / "grey.JPEG")
    data = ImageFolder(folder, 32)
    with caplog.at_level(logging.WARNING):
        image, label = data[1]
        data[1]
    assert label == data[2][1] == 1
    assert torch.equal(image, data[2][0])
    assert data.unreadable == 1
    assert [r for r in caplog.messages if "grey.JPEG" in r] == caplog.messages
    assert len(caplog.messages) == 1


def test_the_last_picture_is_replaced_by_the_first(folder):
    damage(folder / "cat" / "cmyk.jpg")
    data = ImageFolder(folder, 32)
    assert data.paths[-1].endswith("cmyk.jpg")
    image, label = data[len(data) - 1]
    assert label == 0 and torch.equal(image, data[0][0])


def test_workers_share_the_count(folder):
    damage(folder / "10" / "a.jpg")
    damage(folder / "cat" / "clear.png")
    data = ImageFolder(folder, 32)
    assert len(list(DataLoader(data, batch_size=1, num_workers=2))) == 6
    assert data.unreadable == 2


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("no picture")
    data = ImageFolder(tmp_path, 32)
    with pytest.raises(UserError, match="none of its 1 pictures can be read"):
        data[0]


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        ImageFolder(tmp_path / "absent", 32)
    write(tmp_path / "flat" / "x.png", noise(4, 4))
    with pytest.raises(UserError, match="flat: found no folders in it, expected a folder for each"):
        ImageFolder(tmp_path / "flat", 32)
    (tmp_path / "flat" / "empty").mkdir()
    with pytest.raises(UserError, match="empty: a class folder without pictures"):
        ImageFolder(tmp_path / "flat", 32)


def test_links_are_followed(folder, tmp_path):
    other = tmp_path / "other"
    (other / "plain").mkdir(parents=True)
    (other / "linked").symlink_to(folder / "2")
    (other / "plain" / "within").symlink_to(folder / "10")
    assert ImageFolder(other, 32).labels.tolist() == [0, 0, 1, 1]


def test_indices_end_and_the_data_set_can_be_copied(folder):
    data = copy.deepcopy(ImageFolder(folder, 32))
    assert torch.equal(data[-1][0], data[5][0])
    with pytest.raises(IndexError):
        data[6]


def test_loaded_batches_do_not_depend_on_workers(folder):
    data = ImageFolder(folder, 24, train=True)

    def batches(workers):
        sampler = DrawSampler(len(data), 0, 1, 2, seed=1)
        sampler.set_epoch(4)
        return list(DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers))

    for (a, label_a), (b, label_b) in zip(batches(0), batches(2), strict=True):
        assert torch.equal(a, b) and torch.equal(label_a, label_b)


def test_paths_are_a_sequence_of_any_file_names():
    names = ["a/1.jpg", "", "ü/第.png", "not utf-8 \udce9.jpg"]
    paths = Paths(names)
    assert list(paths) == names and len(paths) == 4
    assert paths[-1] == names[-1] and paths[1:3] == names[1:3]
    with pytest.raises(IndexError):
        paths[4]


@pytest.mark.parametrize("sizes", [(0, None), (32, 0)])
def test_sizes_without_pixels_are_refused(folder, sizes):
    with pytest.raises(UserError, match="found 0, expected at least 1 pixel"):
        ImageFolder(folder, sizes[0], width=sizes[1])
