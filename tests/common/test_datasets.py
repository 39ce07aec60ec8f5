from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.datasets import Draw, DrawSampler, ImageFolder, crop, resize_to_cover
from common.errors import UserError
from common.seeding import stream


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


# --- ImageFolder


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


def test_resizing_covers_the_crop_with_the_short_side(tmp_path):
    assert resize_to_cover(noise(40, 60), 20, 20).size == (30, 20)
    assert resize_to_cover(noise(60, 40), 20, 20).size == (20, 30)
    assert resize_to_cover(noise(40, 60), 20, 60).size == (60, 40)
    assert resize_to_cover(noise(3, 7), 20, 20).size == (47, 20)


def test_shrinking_averages_fine_texture():
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.array(resize_to_cover(Image.fromarray(stripes), 64, 64)).astype(float)
    assert np.abs(small[:, 8:-8] - 127.5).max() < 8  # picking single pixels would give 0 or 255


def test_the_centre_crop_is_the_centre():
    picture = noise(21, 41)
    middle = np.array(picture)[5:16, 15:26]
    assert np.array_equal(np.array(crop(picture, 11, 11, None)), middle)


def test_random_crops_reach_every_place():
    ramp = Image.fromarray(np.arange(12, dtype=np.uint8)[None].repeat(8, axis=0))
    lefts = {crop(ramp, 8, 8, stream(0, k)).getpixel((0, 0)) for k in range(200)}
    assert lefts == {0, 1, 2, 3, 4}


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
    assert ImageFolder(other, 32).labels == [0, 0, 1, 1]


def test_indices_end_and_the_data_set_can_be_copied(folder):
    data = copy.deepcopy(ImageFolder(folder, 32))
    assert torch.equal(data[-1][0], data[5][0])
    with pytest.raises(IndexError):
        data[6]


# --- DrawSampler


def draws(length=23, rank=0, world=1, batch=4, epoch=0, seed=0, **options):
    sampler = DrawSampler(length, rank, world, batch, seed, **options)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_out_the_order_of_one(shuffle, drop_last):
    options = {"shuffle": shuffle, "drop_last": drop_last, "epoch": 3}
    one = draws(batch=4, world=1, **options)
    for world in (2, 4):
        parts = [draws(rank=r, batch=4 // world, world=world, **options) for r in range(world)]
        assert sorted((d for part in parts for d in part), key=lambda d: d.number) == one
        for r, part in enumerate(parts):
            assert part == one[r::world]


def test_an_epoch_draws_each_picture_once_in_a_new_order():
    orders = [[d.index for d in draws(batch=1, epoch=epoch)] for epoch in range(3)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[1] == [d.index for d in draws(batch=1, epoch=1)]
    assert orders[1] != [d.index for d in draws(batch=1, epoch=1, seed=1)]


def test_numbers_go_on_through_the_epochs():
    numbers = [d.number for epoch in range(3) for d in draws(batch=1, epoch=epoch)]
    assert numbers == list(range(3 * 23))


def test_training_drops_incomplete_batches_and_validation_nothing():
    assert [len(draws(rank=r, world=3, batch=2)) for r in range(3)] == [6, 6, 6]
    parts = [draws(rank=r, world=3, batch=2, shuffle=False, drop_last=False) for r in range(3)]
    assert [len(part) for part in parts] == [8, 8, 7]
    assert sorted(d.index for part in parts for d in part) == list(range(23))


def test_a_resume_goes_on_where_the_epoch_stopped():
    whole = draws(rank=1, world=2, batch=3, epoch=5)
    sampler = DrawSampler(23, 1, 2, 3, seed=0)
    sampler.resume(epoch=5, start_batch=2)
    assert list(sampler) == whole[2 * 3 :]
    sampler.set_epoch(5)  # as a trainer does before it begins
    assert list(sampler) == whole[2 * 3 :]
    sampler.set_epoch(6)
    assert list(sampler) == draws(rank=1, world=2, batch=3, epoch=6)


def test_loaded_batches_do_not_depend_on_workers(folder):
    data = ImageFolder(folder, 24, train=True)

    def batches(workers):
        sampler = DrawSampler(len(data), 0, 1, 2, seed=1)
        sampler.set_epoch(4)
        return list(DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers))

    for (a, label_a), (b, label_b) in zip(batches(0), batches(2), strict=True):
        assert torch.equal(a, b) and torch.equal(label_a, label_b)


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match=r"process_rank: found 2, expected 0\.\.1"):
        DrawSampler(10, 2, 2, 1, seed=0)
