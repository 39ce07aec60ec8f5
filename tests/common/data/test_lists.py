from __future__ import annotations

import os
import re

import pytest
from PIL import Image

from common.data.folders import ImageFolder
from common.data.lists import ImageList
from common.data.sampler import Draw
from common.errors import UserError

FILES = ("f/forest/broad leaf/1.jpg", "a/airfield/1 (2).PNG", "c/church/indoor/x.jpg", "flat.png")


@pytest.fixture
def root(tmp_path):
    """Pictures of different colours, a folder below the list."""
    root = tmp_path / "pictures"
    for k, name in enumerate(FILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (60 * k, 0, 0)).save(root / name, quality=98)
    return root


def listed(folder, text, name="list.txt"):
    (folder / name).write_text(text)
    return str(folder / name)


def colours(data):
    return [round(data[i][0][0].float().mean().item() / 60) for i in range(len(data))]


def test_without_labels_the_class_is_the_folder_as_it_is_listed(root):
    data = ImageList(listed(root, "\n".join(["# a comment", "", *FILES])), 8)
    assert data.class_names == [".", "a/airfield", "c/church/indoor", "f/forest/broad leaf"]
    assert [data[i][1] for i in range(4)] == [3, 1, 2, 0]
    assert colours(data) == [0, 1, 2, 3]
    assert data[0][0].shape == (3, 8, 8)


def test_labels_follow_the_path_after_any_space(root):
    text = f"{FILES[0]} 2\n  {FILES[1]}\t0\r\n{FILES[2]}   2"
    data = ImageList(listed(root, text), 8)
    assert [data[i][1] for i in range(3)] == [2, 0, 2]
    assert data.class_names == ["0", "1", "2"]
    assert colours(data) == [0, 1, 2]


def test_a_number_in_a_name_is_no_label(root):
    Image.new("RGB", (9, 9)).save(root / "photo 12.png")
    data = ImageList(listed(root, "photo 12.png"), 8)
    assert data.paths[0].endswith("photo 12.png") and data.class_names == ["."]


def test_paths_start_from_the_root_or_the_folder_of_the_list(root, tmp_path, monkeypatch):
    text = "".join(f"/{name} {k}\n" for k, name in enumerate(FILES))  # as Places365 writes them
    elsewhere = listed(tmp_path, text)
    data = ImageList(elsewhere, 8, root=str(root))
    assert [data[i][1] for i in range(4)] == colours(data) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"line 1: no such picture /f/forest"):
        ImageList(elsewhere, 8)
    absolute = listed(tmp_path, "\n".join(str(root / name) for name in FILES), "absolute.txt")
    assert colours(ImageList(absolute, 8)) == [0, 1, 2, 3]
    listed(root, FILES[3], "here.txt")
    monkeypatch.chdir(root)
    assert colours(ImageList("here.txt", 8)) == [3]


def test_it_trains_like_a_folder_of_the_same_pictures(root, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "flat.png").unlink()
    folder = ImageFolder(str(pictures), 6, train=True, seed=3, width=5)
    text = "\n".join(os.path.relpath(path, root) for path in folder.paths)
    data = ImageList(listed(root, text), 6, train=True, seed=3, width=5)
    for number in range(9):
        draw = Draw(number % 3, number)
        (a, label_a), (b, label_b) = folder[draw], data[draw]
        assert a.equal(b) and label_a == label_b


def test_names_that_are_not_utf_8_are_found(root):
    name = b"caf\xe9.png"
    os.rename(os.fsencode(root / FILES[3]), os.fsencode(root) + b"/" + name)
    (root / "list.txt").write_bytes(b"\xef\xbb\xbf" + name + b" 3\n")  # some editors mark UTF-8 so
    assert colours(ImageList(str(root / "list.txt"), 8)) == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n{0} 0\n{1} -1", "line 3: found '{1} -1', expected the path of a picture, and maybe"),
        ("{0} 0\n{1} cat", "line 2: found '{1} cat', expected the path"),
        ("notes.txt", "line 1: found 'notes.txt', expected the path"),
        ("{0} 0\n{1}", "line 2: found no label, unlike in the lines before"),
        ("{0}\n{1} 4", "line 2: found a label, unlike in the lines before"),
        ("# no\n\nabsent.jpg", "line 3: no such picture"),
        ("# nothing\n", "lists no pictures"),
    ],
)
def test_mistakes_name_the_file_and_the_line(root, text, message):
    file = listed(root, text.format(*FILES))
    with pytest.raises(UserError, match=re.escape(message.format(*FILES))) as error:
        ImageList(file, 8)
    assert str(error.value).startswith(f"{file}: ")


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.txt: cannot read this list of pictures"):
        ImageList(str(tmp_path / "no.txt"), 8)
    with pytest.raises(UserError, match="cannot read this list of pictures"):
        ImageList(str(tmp_path), 8)


def test_missing_pictures_count_as_unreadable(root):
    data = ImageList(listed(root, f"{FILES[0]} 0\nabsent.jpg 1\n{FILES[1]} 2"), 8)
    assert data[1][1] == 2 and data.unreadable == 1
    assert data.paths[data.unreadable_flags.nonzero().item()] == str(root / "absent.jpg")
