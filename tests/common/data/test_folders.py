import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.data.folders import ImageFolder, ImageList
from common.data.sampler import Draw
from common.errors import UserError


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def folder(tmp_path):
    """Three classes, one of them nested."""
    root = tmp_path / "images"
    for name in ["10/a.jpg", "10/b.JPEG", "2/deep/b.png", "2/c.png", "cat/d.jpg", "cat/e.png"]:
        write(root / name, noise(40, 60))
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "._a.jpg").write_text("left by another system")
    (root / ".hidden").mkdir()
    return root


def damage(path):
    path.write_bytes(path.read_bytes()[:300])


def test_labels_follow_the_names_as_strings(folder):
    data = ImageFolder(folder, size=32)
    assert data.class_names == ["10", "2", "cat"]
    assert [data[i][1] for i in range(len(data))] == [0, 0, 1, 1, 2, 2]


def test_a_draw_depends_on_its_number_and_nothing_else(folder):
    data = ImageFolder(folder, size=24, train=True, seed=5)
    again = ImageFolder(folder, size=24, train=True, seed=5)
    other_seed = ImageFolder(folder, size=24, train=True, seed=6)
    draws = [Draw(0, number) for number in range(8)]
    images = [data[draw][0] for draw in draws]
    for draw, image in reversed(list(zip(draws, images, strict=True))):
        assert torch.equal(again[draw][0], image)
    assert any(not torch.equal(images[0], image) for image in images[1:])
    assert any(not torch.equal(other_seed[d][0], x) for d, x in zip(draws, images, strict=True))


def test_an_unreadable_image_is_replaced_logged_once_and_counted(folder, caplog):
    damage(folder / "10" / "b.JPEG")
    data = ImageFolder(folder, size=32)
    with caplog.at_level(logging.WARNING):
        image, label = data[1]
        data[1]
    assert label == data[2][1] == 1
    assert torch.equal(image, data[2][0])
    assert data.unreadable_flags.sum() == 1
    assert [r for r in caplog.messages if "b.JPEG" in r] == caplog.messages
    assert len(caplog.messages) == 1


def test_workers_share_the_count(folder):
    damage(folder / "10" / "a.jpg")
    damage(folder / "cat" / "e.png")
    data = ImageFolder(folder, size=32)
    assert len(list(DataLoader(data, batch_size=1, num_workers=2))) == 6
    assert data.unreadable_flags.sum() == 2


def test_wrong_folders_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "absent", tmp_path, tmp_path / "a"):
        with pytest.raises(UserError, match=str(path)):
            ImageFolder(path, size=32)
    (tmp_path / "a" / "x.png").write_text("no image")
    with pytest.raises(UserError, match="none of its 1 images"):
        ImageFolder(tmp_path, size=32)[0]


def test_pipes_loops_and_images_beyond_memory_stop_nothing(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "1.png", noise(8, 8))
        (tmp_path / name / "other").symlink_to(tmp_path / ("b" if name == "a" else "a"))
    os.mkfifo(tmp_path / "a" / "pipe.png")
    write(tmp_path / "a" / "0.png", Image.new("L", (1, 5_000_000)))
    data = ImageFolder(tmp_path, size=64)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]  # a, a/other, and a's own again below b
    assert data[0][0].shape == (3, 64, 64) and data.unreadable_flags.sum() == 1


LISTED = ("f/forest/broad leaf/1.jpg", "a/airfield/1 (2).PNG", "c/church/indoor/x.jpg", "flat.png")


@pytest.fixture
def root(tmp_path):
    """Images of different colours, a folder below the list."""
    root = tmp_path / "images"
    for k, name in enumerate(LISTED):
        write(root / name, Image.new("RGB", (12, 10), (60 * k, 0, 0)))
    return root


def listed(folder, text, name="list.txt"):
    (folder / name).write_text(text)
    return str(folder / name)


def colours(data):
    return [round(data[i][0][0].float().mean().item() / 60) for i in range(len(data))]


def test_without_labels_the_class_is_the_folder_as_it_is_listed(root):
    data = ImageList(listed(root, "\n".join(["# a comment", "", *LISTED])), size=8)
    assert data.class_names == [".", "a/airfield", "c/church/indoor", "f/forest/broad leaf"]
    assert [data[i][1] for i in range(4)] == [3, 1, 2, 0]
    assert colours(data) == [0, 1, 2, 3]
    assert data[0][0].shape == (3, 8, 8)


def test_paths_start_from_the_root_or_the_folder_of_the_list(root, tmp_path, monkeypatch):
    text = "".join(f"/{name} {k}\n" for k, name in enumerate(LISTED))  # as Places365 writes them
    elsewhere = listed(tmp_path, text)
    data = ImageList(elsewhere, size=8, root=str(root))
    assert [data[i][1] for i in range(4)] == colours(data) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"list\.txt: found .*/f/forest"):
        ImageList(elsewhere, size=8)
    absolute = listed(tmp_path, "\n".join(str(root / name) for name in LISTED), "absolute.txt")
    assert colours(ImageList(absolute, size=8)) == [0, 1, 2, 3]
    listed(root, LISTED[3], "here.txt")
    monkeypatch.chdir(root)
    assert colours(ImageList("here.txt", size=8)) == [3]


def test_names_that_are_not_utf_8_are_found(root):
    name = b"caf\xe9.png"
    os.rename(os.fsencode(root / LISTED[3]), os.fsencode(root) + b"/" + name)
    (root / "list.txt").write_bytes(b"\xef\xbb\xbf" + name + b" 3\n")  # some editors mark UTF-8 so
    assert colours(ImageList(str(root / "list.txt"), size=8)) == [3]


@pytest.mark.parametrize(
    "text", ["\n{0} 0\n{1} -1", "{0} 0\n{1} cat", "notes.txt", "{0} 0\n{1}", "{0} 1234567", "#"]
)
def test_mistakes_name_the_list(root, text):
    file = listed(root, text.format(*LISTED))
    with pytest.raises(UserError, match=file):
        ImageList(file, size=8)
