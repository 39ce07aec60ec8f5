from collections import Counter
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from common import images
from common.errors import UserError
from generator.checkpoints import LoadedGenerator
from generator.generate import (
    continue_image,
    generate,
    image_labels,
    image_path,
    scroll,
    whole_images,
)
from generator.sampling import SampleConfig

SAMPLING = SampleConfig(cfg=2.0, cfg_ramp=6, steps=4)
NAMES = ["alps", "bay", "city", "dunes", "edge"]


class Tokenizer:
    """Each token is a column of one pixel, its first three channels the colours."""

    token_scale = torch.ones(())

    column_width = 1
    rows = 1

    def decode_tokens(self, tokens):
        return tokens[:, :, :3].transpose(1, 2)[:, :, None] / 4

    def encode(self, pictures):
        return SimpleNamespace(mean=torch.cat([pictures[:, :, 0].mT * 2] * 2, dim=2))

    def scaled(self, tokens):
        return tokens * 2


def draw(model, numbers, labels=None, columns=6, given=None, **changes):
    labels = [k % 5 for k in numbers] if labels is None else labels
    config = replace(SAMPLING, columns=columns, **changes)
    found = generate(LoadedGenerator(model, NAMES), Tokenizer(), labels, config, numbers, given)
    return torch.stack(list(found)).int()


def test_an_image_is_the_same_in_every_batch(model):
    numbers = [0, 1, 2, 3, 9]
    together = draw(model, numbers)
    assert together.shape == (5, 3, 1, 6)
    for some in ([0], [9], [9, 3], [3, 9]):
        expected = together[[numbers.index(k) for k in some]]
        assert (draw(model, some) - expected).abs().max() <= 1


def test_a_scroll_is_the_image_without_end(model):
    tiles = {"seed": 5, "decode_columns": 8, "decode_overlap": 2}
    config = replace(SAMPLING, **tiles)
    found = scroll(LoadedGenerator(model, NAMES), Tokenizer(), [1, 4], config)
    unrolled = torch.cat(list(islice(found, 10)), dim=3).int()
    image = draw(model, [0, 1], [1, 4], columns=60, **tiles)
    assert (unrolled - image).abs().max() <= 1


def test_an_image_is_continued_to_the_right_and_to_the_left(model):
    """To the left is to the right in the mirror."""
    given = torch.rand(2, 3, 1, 4, generator=torch.Generator().manual_seed(0)) - 0.5

    def continued(given, side):
        config, loaded = replace(SAMPLING, seed=2), LoadedGenerator(model, NAMES)
        found = continue_image(loaded, Tokenizer(), given, [1, 3], 5, side, config)
        return torch.stack(list(found)).int()

    found = continued(given, "right")
    assert torch.equal(found[..., :4], images.to_uint8(given).int())
    tokens = torch.cat([given[:, :, 0].mT * 4] * 2, dim=2)
    columns = dict(enumerate(tokens.unbind(1)))
    assert torch.equal(found, draw(model, [0, 1], [1, 3], 9, seed=2, given=columns))
    assert torch.equal(continued(given.flip(3), "left").flip(3), found)


def labels(choice, count, seed=0):
    return image_labels(choice, 5, seed, count)


def test_labels_of_images():
    assert labels("balanced", 7) == [0, 1, 2, 3, 4, 0, 1]
    assert labels("3, 0-2,4", 7) == [3, 0, 1, 2, 4, 3, 0]
    many = labels("random", 2000)
    assert labels("random", 20) == many[:20] != labels("random", 20, seed=1)
    assert all(330 < count < 470 for count in Counter(many).values()) and len(set(many)) == 5
    for choice in ("5", "3-5", "2-1", "sea", "", "1,,2", "1,", "-1", "1-", "0:3"):
        with pytest.raises(UserError, match="--labels"):
            labels(choice, 3)


def test_only_whole_images_are_done(tmp_path):
    for k in (0, 1, 3):
        images.save_image(image_path(tmp_path, k), torch.zeros(3, 8, 8, dtype=torch.uint8))
    half = image_path(tmp_path, 3)
    half.write_bytes(half.read_bytes()[:-20])
    image_path(tmp_path, 2).touch()  # of a full disk
    (tmp_path / ".000003.png.9.tmp").touch()
    assert whole_images(tmp_path, 5) == {0, 1} and whole_images(tmp_path / "no", 5) == set()
    (tmp_path / "other.png").touch()
    with pytest.raises(UserError, match=r"other\.png"):
        whole_images(tmp_path, 5)
