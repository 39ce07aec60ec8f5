from __future__ import annotations

from collections import Counter

import pytest

from common.errors import UserError
from generator.series import Series, image_labels

NAMES = ["alps", "bay", "city", "dunes", "edge"]


def labels(choice, count, seed=0):
    return [image_labels(choice, NAMES, seed)(k) for k in range(count)]


def test_balanced_labels_are_even_for_any_count():
    assert labels("balanced", 7) == [0, 1, 2, 3, 4, 0, 1]


def test_random_labels_belong_to_the_image_and_the_seed():
    many = labels("random", 2000)
    assert labels("random", 20) == many[:20] != labels("random", 20, seed=1)
    assert all(330 < count < 470 for count in Counter(many).values()) and len(set(many)) == 5


def test_listed_labels_are_taken_in_turn():
    assert labels("dunes, 0-2,4", 7) == [3, 0, 1, 2, 4, 3, 0]


@pytest.mark.parametrize("choice", ["5", "3-5", "2-1", "sea", "", "1,,2", "-1"])
def test_classes_that_are_not_there_are_named(choice):
    with pytest.raises(UserError, match=r"--labels: found .*expected balanced, random"):
        image_labels(choice, NAMES, 0)


def test_a_batch_is_drawn_until_all_its_images_are_there(tmp_path):
    series = Series(tmp_path / "images", 5, 2)
    assert series.batches(series.done()) == [range(0, 2), range(2, 4), range(4, 5)]
    series.folder.mkdir()
    for k in (0, 1, 2):
        series.path(k).write_bytes(b"picture")
    series.path(3).touch()  # of a full disk
    (series.folder / ".000003.png.9.tmp").touch()
    assert series.done() == {0, 1, 2} and series.batches({0, 1, 2}) == [range(2, 4), range(4, 5)]
    (series.folder / "other.png").touch()
    with pytest.raises(UserError, match=r"found other.png, which is none of the 5 images"):
        series.done()
