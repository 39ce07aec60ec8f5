from __future__ import annotations

from itertools import islice

import pytest
import torch

from common import images, seeding
from common.errors import UserError
from generator import pipeline
from generator.decoding import Pieces
from generator.guidance import Guidance
from generator.pipeline import column_noise, continue_images, generate, image_noise, scroll
from generator.sampling import Sampling, numbered
from generator.solvers import Solver

SAMPLING = Sampling(Guidance(2.0, "linear", 6), Solver(steps=4))


class Mean:
    def __init__(self, tokens):
        self.tokens = tokens

    def mode(self):
        return self.tokens


class Tokenizer:
    """Each token is a column of one pixel, its first three channels the colours."""

    column_width = 1

    def decode_tokens(self, tokens):
        return tokens[:, :, :3].transpose(1, 2)[:, :, None] / 4

    def encode(self, pictures):
        return Mean(torch.cat([pictures[:, :, 0].mT * 2] * 2, dim=2))

    def scaled(self, tokens):
        return tokens * 2


def draw(model, numbers, labels=None, columns=6, sampling=SAMPLING, **more):
    labels = [k % 5 for k in numbers] if labels is None else labels
    pictures = generate(model, Tokenizer(), labels, numbers, columns, sampling, **more)
    return torch.stack(list(pictures)).int()


def test_an_image_is_the_same_in_every_batch(model):
    together = draw(model, [0, 1, 2, 3, 9])
    assert together.shape == (5, 3, 1, 6)
    for row, number in enumerate([0, 1, 2, 3, 9]):
        assert (draw(model, [number])[0] - together[row]).abs().max() <= 1
    for order in ([9, 3], [3, 9]):
        expected = together[[[0, 1, 2, 3, 9].index(k) for k in order]]
        assert (draw(model, order) - expected).abs().max() <= 1


def test_seeds_and_numbers_make_different_images(model):
    distinct = [draw(model, [k], labels=[0], seed=seed) for k in (0, 1) for seed in (0, 1)]
    for i, a in enumerate(distinct):
        assert all((a - b).abs().max() > 1 for b in distinct[:i])


def test_a_longer_image_begins_with_the_noise_of_a_shorter_one():
    short, long = image_noise(3, [7, 8], 4, 6), image_noise(3, [7, 8], 400, 6)
    assert torch.equal(long[:, :4], short)
    assert short.shape == (2, 4, 6) and not torch.equal(short[0], short[1])


def test_noise_by_the_column_is_that_of_the_whole_image():
    """Of an image's stream, read column by column in blocks; in any company."""
    columns = column_noise(3, [8, 7], 6)
    found = torch.stack(list(islice(columns, 2 * pipeline.BLOCK + 3)), 1)
    for row, number in enumerate([8, 7]):
        expected = seeding.normal(3, "image", number, shape=(found.shape[1], 6))
        assert torch.equal(found[row], expected)


def test_given_columns_are_kept(model):
    prefix = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    drawn = draw(model, [0, 1], given=numbered(prefix))
    expected = images.to_uint8(Tokenizer().decode_tokens(prefix))
    assert torch.equal(drawn[..., :3], expected.int())


def test_without_temperature_only_the_class_counts(model):
    sampling = Sampling(SAMPLING.guidance, SAMPLING.solver, temperature=0.0)
    pair = draw(model, [0, 1], labels=[2, 2], sampling=sampling)
    assert (pair[0] - pair[1]).abs().max() <= 1


def test_a_scroll_is_the_image_without_end(model):
    pieces = Pieces(8, 2)
    strips = list(islice(scroll(model, Tokenizer(), [1, 4], [6, 9], SAMPLING, 5, pieces), 10))
    assert {strip.dtype for strip in strips} == {torch.uint8}
    unrolled = torch.cat(strips, dim=3).int()
    assert unrolled.shape == (2, 3, 1, 60)
    image = draw(model, [6, 9], [1, 4], columns=60, seed=5, pieces=pieces)
    assert (unrolled - image).abs().max() <= 1


class TestContinuing:
    pictures = torch.rand(2, 3, 1, 4, generator=torch.Generator().manual_seed(0)) - 0.5

    def draw(self, model, pictures, side):
        found = continue_images(
            model, Tokenizer(), pictures, [1, 3], [0, 1], 5, side, SAMPLING, seed=2
        )
        return torch.stack(list(found)).int()

    def test_to_the_right_the_picture_stays_and_goes_on(self, model):
        found = self.draw(model, self.pictures, "right")
        assert found.shape == (2, 3, 1, 9)
        assert torch.equal(found[..., :4], images.to_uint8(self.pictures).int())
        tokens = torch.cat([self.pictures[:, :, 0].mT * 4] * 2, dim=2)
        expected = draw(model, [0, 1], [1, 3], 9, seed=2, given=numbered(tokens))
        assert torch.equal(found, expected)

    def test_to_the_left_is_to_the_right_in_the_mirror(self, model):
        found = self.draw(model, self.pictures, "left")
        assert torch.equal(found[..., 5:], images.to_uint8(self.pictures).int())
        assert torch.equal(found.flip(3), self.draw(model, self.pictures.flip(3), "right"))

    def test_there_is_no_other_side(self, model):
        with pytest.raises(UserError, match="side: found 'up', expected right or left"):
            self.draw(model, self.pictures, "up")


@pytest.mark.parametrize("label", [-1, 5])
def test_a_class_outside_the_range_is_named(model, label):
    with pytest.raises(UserError, match=r"class labels: found .*, expected 0 … 4"):
        draw(model, [0, 1], labels=[0, label])
